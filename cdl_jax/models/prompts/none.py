"""No prompts: a linear probe, the head alone learns on what the frozen backbone says. What a learner has to beat."""

from typing import ClassVar

import jax.numpy as jnp

from cdl_jax.models.prompts.base import Pool, Selection

OPTIONS = {}


class Empty(Pool):
    """No parameters."""

    uses_query: ClassVar[bool] = False

    def __call__(self, query, context, train: bool) -> Selection:
        """Nothing for any picture; `query` is not computed where nothing else reads it."""
        del query, context, train
        return Selection({}, jnp.zeros(()), {})


def build(options, *, dim: int, key_dim: int, depth: int, num_tasks: int) -> Empty:
    """The learner without prompts."""
    del options, dim, key_dim, depth, num_tasks
    return Empty()
