"""No prompts: a linear probe on a frozen backbone, the baseline of every learner."""

from typing import ClassVar

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax.losses import Context
from cdl_jax.models.learners.base import Pool, Selection

OPTIONS = {}


class EmptyPool(Pool):
    """A pool without prompts and without parameters. Only the head learns."""

    uses_query: ClassVar[bool] = False

    def __call__(self, query: jax.Array, context: Context, train: bool) -> Selection:
        """Returns a selection without prompts."""
        del query, context, train
        return Selection({}, jnp.zeros(()), {})


def build(options: ConfigDict, *, dim: int, key_dim: int, depth: int, num_tasks: int) -> EmptyPool:
    """Returns the pool without prompts."""
    del options, dim, key_dim, depth, num_tasks
    return EmptyPool()
