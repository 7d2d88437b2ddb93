"""Defines the state that training changes, and positions and random keys in a run."""

from functools import reduce
from typing import Any

import jax
import numpy as np
from flax import struct

from cdl_jax.data.stream import Task
from cdl_jax.methods.base import Method, split

# Purposes of randomness: the first number that is folded into the run's key.
IMAGES, LOSS, INIT, TASKS = range(4)


@struct.dataclass
class StateOfSchema1:
    """Holds a `State` under the names that checkpoints of schema 1 have.

    See `cdl_jax.schema`.
    """

    live: Any
    opt: tuple[tuple, ...]
    sums: tuple[dict, ...]
    bad: tuple[dict, ...]
    kept: Any


@struct.dataclass
class State:
    """Holds everything that the steps of a task change.

    The tree of the state is the same from the first step to the last.

    Attributes:
      mutable: variables that are not frozen.
      opt: for each phase, the optimizer states of its updates.
      metric_sums: for each phase, metrics summed over the finite steps since the last log line, and `steps`, their
        number.
      nonfinite: for each phase, the number of steps since the last log line with NaN or infinity (`count`), and the
        `epoch`, `step` and metrics (`terms`) of the first.
      best_mutable: the mutable variables of the best evaluation, with which the task ends if it is stopped early; {}
        without early stopping.
    """

    mutable: Any
    opt: tuple[tuple, ...]
    metric_sums: tuple[dict, ...]
    nonfinite: tuple[dict, ...]
    best_mutable: Any = struct.field(default_factory=dict)

    def to_schema_1(self) -> StateOfSchema1:
        """Returns this state under the names of schema 1."""
        return StateOfSchema1(self.mutable, self.opt, self.metric_sums, self.nonfinite, self.best_mutable)

    @classmethod
    def from_saved(cls, saved: "State | StateOfSchema1") -> "State":
        """Returns the state that a checkpoint of any schema holds."""
        if isinstance(saved, StateOfSchema1):
            return cls(saved.live, saved.opt, saved.sums, saved.bad, saved.kept)
        return saved


def key_at(seed: int | jax.Array, *position: int | jax.Array) -> jax.Array:
    """Returns the random key of a position in the run.

    The key follows from the position, so that no generator state is saved.
    """
    return reduce(jax.random.fold_in, position, jax.random.key(seed))


def init_key(seed: int | jax.Array) -> jax.Array:
    """Returns the key with which a run's variables are initialized."""
    return key_at(seed, INIT)


def position(task: Task, *, epoch=0, step=0, steps: int = 1, accumulate: int = 1) -> dict[str, np.ndarray]:
    """Returns the numbers of a `Context` as arrays.

    A new value of an array compiles nothing.

    Args:
      task: the current task.
      epoch: of the phase; an array `[n]` for n steps in one call.
      step: within the epoch; an array `[n]` for n steps in one call.
      steps: number of steps of an epoch.
      accumulate: number of steps in one optimizer step; all of them have the progress of the first.

    Returns:
      int32 `task`, `first`, `end`, `epoch`, `step` and float32 `progress`, scalars or `[n]`.
    """
    numbers = {
        "task": np.int32(task.index),
        "first": np.int32(task.first),
        "end": np.int32(task.end),
        "epoch": np.int32(epoch),
        "step": np.int32(step),
        "progress": np.float32(epoch + (step - step % accumulate) / steps),
    }
    return {name: np.broadcast_to(x, np.shape(step)) for name, x in numbers.items()} if np.ndim(step) else numbers


def init_optimizers(method: Method, mutable) -> tuple[tuple, ...]:
    """Returns the optimizer states with which a task begins.

    Each phase has a tuple with the state of each of its updates.
    """
    return tuple(
        tuple(update.optimizer.transform.init(split(mutable, update.trainable)[0]) for update in phase.updates)
        for phase in method.phases
    )
