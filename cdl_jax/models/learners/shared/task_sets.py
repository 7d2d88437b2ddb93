"""Parameters of all tasks, of which those of the current task are trained."""

from collections.abc import Mapping
from typing import Any

import jax

from cdl_jax.losses import Context


def with_trained_set(variables: Mapping[str, Any], context: Context) -> Any:
    """Returns the sets of all tasks.

    The set of the task of `context` is the trained one.

    Args:
      variables: `state`, a tree of arrays `[num_tasks, ...]`, the sets after earlier tasks; `params`, a tree of arrays
        `[...]`, the trained set.
      context: the position in the run.

    Returns:
      A tree of arrays `[num_tasks, ...]`.
    """
    return jax.tree.map(
        lambda earlier, trained: earlier.at[context.task].set(trained), variables["state"], variables["params"]
    )
