"""Selects rows of earlier tasks for a memory, and orders them in later batches.

All functions are pure functions of the seed and the position in the run, so nothing is saved. The rows of a memory that
a network chooses are an argument.

In the other memories each row of a task has a random key, which depends on (seed, learner, task) alone. A memory that
shrinks keeps the rows with the largest keys, as a reservoir would.
"""

from collections.abc import Sequence

import numpy as np

from cdl_jax.data.sampling import rng_for
from cdl_jax.errors import UserError

_KEYS, _ORDER = 0x5EE9, 0x0DE6  # separate the random numbers of keys and orders from each other and from batches


def group_lengths(capacity: int, groups: int) -> list[int]:
    """Splits a capacity evenly over groups; the first groups get one row more.

    >>> group_lengths(10, 4)
    [3, 3, 2, 2]
    """
    size, remainder = divmod(capacity, groups)
    return [size + (i < remainder) for i in range(groups)]


def memory_rows(task_rows: Sequence[np.ndarray], capacity: int, seed: int, learner: int = 0) -> list[np.ndarray]:
    """Selects the rows of a memory that is balanced over tasks.

    Args:
      task_rows: int `[n]` for each task that has been learned, in the order of the stream.
      capacity: size of the memory in rows. A task with fewer rows than its part leaves room unused.
      seed: of the run, non-negative.
      learner: index of the learner, non-negative.

    Returns:
      For each task int32 `[m]`, its rows, those with the largest keys first.
    """
    lengths = group_lengths(capacity, len(task_rows)) if len(task_rows) else []
    keys = _keys(task_rows, seed, learner)
    return [_largest(rows, k, n) for rows, k, n in zip(task_rows, keys, lengths, strict=True)]


def memory_rows_by_class(
    task_rows: Sequence[np.ndarray], labels: np.ndarray, capacity: int, seed: int, learner: int = 0
) -> list[np.ndarray]:
    """Selects the rows of a memory that is balanced over the classes of the tasks.

    Args:
      task_rows: as in `memory_rows`.
      labels: int `[rows]` of the split that `task_rows` selects from.
      capacity, seed, learner: as in `memory_rows`.

    Returns:
      For each class, in the order of labels, int32 `[m]`.
    """
    if not len(task_rows):
        return []
    rows, keys = np.concatenate(task_rows), np.concatenate(_keys(task_rows, seed, learner))
    classes = np.unique(labels[rows])
    members = [labels[rows] == c for c in classes]
    lengths = group_lengths(capacity, len(classes))
    return [_largest(rows[member], keys[member], n) for member, n in zip(members, lengths, strict=True)]


def herded_lengths(capacity: int, classes: int, per_class: int = 0) -> list[int]:
    """Returns the most rows of each class in a herded memory.

    Args:
      capacity: size of the memory in rows, split evenly if `per_class` is 0.
      classes: number of classes.
      per_class: rows of each class; 0: by the capacity.
    """
    return [per_class] * classes if per_class else group_lengths(capacity, classes)


def herded_rows(memory: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """Selects the first rows of each class in a herded memory.

    >>> herded_rows(np.array([[4, 7, 1], [3, -1, -1], [-1, -1, -1]], np.int32), [2, 2]).tolist()
    [4, 7, 3]

    Args:
      memory: int32 `[classes, width]`, see `data.herding`.
      lengths: most rows of each of the first classes.

    Returns:
      int32 `[n]`.
    """
    rows = [class_rows[:length] for class_rows, length in zip(memory, lengths, strict=False)]
    rows = np.concatenate([np.zeros(0, np.int32), *rows])
    return rows[rows >= 0]


def memory_order(rows: np.ndarray, steps: int, batch: int, seed: int, purpose: tuple[int, ...]) -> np.ndarray:
    """Orders the rows of a memory into batches: shuffled passes, one after the other.

    Every batch is full, so that one compiled step serves all. The rows that a pass leaves over begin a batch that the
    next pass completes. (The authors' loader ends each pass with a smaller batch.)

    Args:
      rows: int `[n]`, at least one.
      steps: number of batches.
      batch: rows in a batch.
      seed: of the run, non-negative.
      purpose: non-negative counters, such as (learner, task, epoch).

    Returns:
      int32 `[steps, batch]`.

    Raises:
      UserError: the memory is empty.
    """
    rows = np.asarray(rows)
    if not len(rows):
        raise UserError("the replay memory is empty: give it room for at least one image of each task")
    passes = -(-steps * batch // len(rows))
    shuffled = [rng_for(seed, _ORDER, *purpose, i).permutation(rows) for i in range(passes)]
    return np.concatenate(shuffled)[: steps * batch].reshape(steps, batch).astype(np.int32)


def _keys(task_rows, seed, learner):
    return [rng_for(seed, _KEYS, learner, task).random(len(rows)) for task, rows in enumerate(task_rows)]


def _largest(rows, keys, count):
    return np.asarray(rows)[np.argsort(-keys, kind="stable")[:count]].astype(np.int32)
