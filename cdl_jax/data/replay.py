"""Rows of earlier tasks to learn again: which of them a memory keeps, and in which order they come back.

All of it is a pure function of the seed and the place in the run, so that nothing has to be saved; of a memory that a
network chooses, the rows themselves are an argument. Elsewhere a task's rows each have a random key, which depends on
(seed, learner, task) alone; a memory that shrinks keeps those of the largest keys, as a reservoir would.
"""

from collections.abc import Sequence

import numpy as np

from cdl_jax.data.sampling import rng_for
from cdl_jax.errors import UserError

_KEYS, _ORDER = 0x5EE9, 0x0DE6  # keep the random numbers of keys and orders apart from each other and from batches


def group_lengths(capacity: int, groups: int) -> list[int]:
    """How many rows each of `groups` may keep of `capacity`: equally many, and one more for the first ones."""
    share, rest = divmod(capacity, groups)
    return [share + (i < rest) for i in range(groups)]


def memory_rows(task_rows: Sequence[np.ndarray], capacity: int, seed: int, learner: int = 0) -> list[np.ndarray]:
    """What a memory balanced over tasks holds once all the tasks of `task_rows` have been learnt.

    Args:
      task_rows: int `[n]`, the rows of each task, in the order of the stream.
      capacity: rows that the memory has room for. A task with fewer rows than its share leaves room unused.
      seed, learner: non-negative; with a task's place they decide the keys.

    Returns:
      For each task its rows, int32, those with the largest keys first.
    """
    lengths = group_lengths(capacity, len(task_rows)) if len(task_rows) else []
    keys = _keys(task_rows, seed, learner)
    return [_largest(rows, k, n) for rows, k, n in zip(task_rows, keys, lengths, strict=True)]


def memory_rows_by_class(
    task_rows: Sequence[np.ndarray], labels: np.ndarray, capacity: int, seed: int, learner: int = 0
) -> list[np.ndarray]:
    """As `memory_rows`, balanced over the classes that occur in the tasks; one array for each, in the order of labels.

    labels: int `[rows]` of the whole split that `task_rows` selects from.
    """
    if not len(task_rows):
        return []
    rows, keys = np.concatenate(task_rows), np.concatenate(_keys(task_rows, seed, learner))
    classes = np.unique(labels[rows])
    chosen = [labels[rows] == c for c in classes]
    lengths = group_lengths(capacity, len(classes))
    return [_largest(rows[own], keys[own], n) for own, n in zip(chosen, lengths, strict=True)]


def herded_lengths(capacity: int, classes: int, per_class: int = 0) -> list[int]:
    """How many rows each of so many classes may have in a herded memory: its share, or `per_class` where not 0."""
    return [per_class] * classes if per_class else group_lengths(capacity, classes)


def herded_rows(memory: np.ndarray, lengths: Sequence[int]) -> np.ndarray:
    """The rows that a herded memory (see `data.herding`) holds of its first classes, int32, so many of each at most."""
    kept = [line[:length] for line, length in zip(memory, lengths, strict=False)]
    rows = np.concatenate([np.zeros(0, np.int32), *kept])
    return rows[rows >= 0]


def memory_order(rows: np.ndarray, steps: int, batch: int, seed: int, purpose: tuple[int, ...]) -> np.ndarray:
    """Rows of a memory for so many steps, int32 `[steps, batch]`: shuffled passes, one after the other.

    Every batch is full, so that one compiled step serves all: what a pass leaves over begins a batch that the next pass
    completes. (The authors' loader ends each pass with a smaller batch.)

    Args:
      rows: int `[n]`, at least one.
      seed, purpose: non-negative counters, such as a run's seed and (learner, task, epoch).

    Raises:
      UserError: the memory is empty.
    """
    rows = np.asarray(rows)
    if not len(rows):
        raise UserError("the replay memory is empty: give it room for at least one picture of each task")
    passes = -(-steps * batch // len(rows))
    shuffled = [rng_for(seed, _ORDER, *purpose, i).permutation(rows) for i in range(passes)]
    return np.concatenate(shuffled)[: steps * batch].reshape(steps, batch).astype(np.int32)


def _keys(task_rows, seed, learner):
    return [rng_for(seed, _KEYS, learner, task).random(len(rows)) for task, rows in enumerate(task_rows)]


def _largest(rows, keys, count):
    return np.asarray(rows)[np.argsort(-keys, kind="stable")[:count]].astype(np.int32)
