"""No prompts: a linear probe on a frozen backbone, the baseline of every learner."""

from typing import ClassVar

from ml_collections import ConfigDict

from cdl_jax.models.learners.base import Learner

OPTIONS = {}


class LinearProbe(Learner):
    """A learner without parameters. Only the head learns."""

    uses_query: ClassVar[bool] = False


def build(options: ConfigDict, *, dim: int, key_dim: int, depth: int, num_tasks: int) -> LinearProbe:
    """Returns the learner without prompts."""
    del options, dim, key_dim, depth, num_tasks
    return LinearProbe()
