"""Contexts of single steps, for tests of losses, prompts and methods."""

import jax
import jax.numpy as jnp

from cdl_jax.losses import Context


def context(first=0, end=1, *, task=0, seed=0) -> Context:
    """Returns the context of the first step of a task.

    The labels of the task are `first <= label < end`.
    """
    integers = {"task": task, "first": first, "end": end, "epoch": 0, "step": 0}
    arrays = {name: jnp.int32(value) for name, value in integers.items()}
    return Context(**arrays, progress=jnp.float32(0), key=jax.random.key(seed))
