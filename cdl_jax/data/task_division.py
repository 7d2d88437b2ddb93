"""Divides classes into tasks, and in blurry streams images; pure functions."""

import operator
from collections.abc import Sequence

import numpy as np

from cdl_jax.data.sampling import rng_for
from cdl_jax.errors import UserError

_SIZES, _DISJOINT, _IMAGES = range(0xB1, 0xB4)  # separate the random numbers of a blurry stream from each other


def divide_classes(
    num_classes: int, num_tasks: int, task_sizes: Sequence[int] = (), base_classes: int = 0, increment: int = 0
) -> tuple[int, ...]:
    """Returns the number of classes of each task.

    >>> divide_classes(6, 3), divide_classes(6, 0, (4, 2)), divide_classes(10, 0, base_classes=4, increment=3)
    ((2, 2, 2), (4, 2), (4, 3, 3))

    Args:
      num_classes: number of classes of all tasks.
      num_tasks: number of tasks of equal size; with `task_sizes` or `increment`, their number or 0.
      task_sizes: number of classes of each task; empty: equal sizes.
      base_classes: number of classes of the first task (B50 in B50-Inc10); 0: as many as `increment`.
      increment: number of classes of each later task (Inc10), of which the last may have fewer, as in PyCIL; 0: by
        `num_tasks` or `task_sizes`.

    Raises:
      UserError: the tasks do not fit the classes.
    """
    try:
        sizes = tuple(map(operator.index, task_sizes))
    except TypeError:
        raise UserError(f"data.task_sizes={task_sizes} must be whole numbers") from None
    if base_classes and not increment:
        raise UserError(
            f"data.base_classes={base_classes} needs data.increment, the classes of each later task: set it, or "
            "data.base_classes=0"
        )
    if sizes and increment:
        raise UserError(
            f"data.task_sizes and data.increment={increment} both give the sizes of tasks: set data.increment=0 and "
            "data.base_classes=0, or data.task_sizes=()"
        )
    if increment:
        sizes = _sizes_of_increments(num_classes, base_classes, increment)
    if not sizes:
        return _equal_sizes(num_classes, num_tasks)
    if num_tasks not in (0, len(sizes)):
        origin = f"data.increment={increment} makes" if increment else "data.task_sizes lists"
        equal = ", or data.increment=0 and data.base_classes=0 for equal tasks" * bool(increment)
        raise UserError(
            f"data.num_tasks={num_tasks}, but {origin} {len(sizes)} tasks: set num_tasks={len(sizes)} or 0{equal}"
        )
    if min(sizes) < 1 or sum(sizes) != num_classes:
        raise UserError(
            f"data.task_sizes={sizes} sums up to {sum(sizes)}, but there are {num_classes} classes: give "
            f"positive sizes that sum up to {num_classes}"
        )
    return sizes


def _sizes_of_increments(num_classes, base_classes, increment):
    base = base_classes or increment
    if base > num_classes:
        key = "base_classes" if base_classes else "increment"
        raise UserError(f"data.{key}={base} is more than the {num_classes} classes: set {num_classes} or fewer")
    later, remainder = divmod(num_classes - base, increment)
    return (base, *(increment,) * later, *(remainder,) * bool(remainder))


def _equal_sizes(num_classes, num_tasks):
    if not 1 <= num_tasks <= num_classes:
        raise UserError(f"data.num_tasks={num_tasks}: {num_classes} classes give 1 to {num_classes} tasks")
    size, remainder = divmod(num_classes, num_tasks)
    if remainder:
        divisors = [d for d in range(1, num_classes + 1) if num_classes % d == 0]
        below, above = max(d for d in divisors if d < num_tasks), min(d for d in divisors if d > num_tasks)
        example = ",".join(str(size + (task < remainder)) for task in range(num_tasks))
        raise UserError(
            f"data.num_tasks={num_tasks} does not divide {num_classes} classes: set num_tasks={below} or {above}, or "
            f"data.task_sizes=({example})"
        )
    return (size,) * num_tasks


def draw_sizes(num_classes: int, num_tasks: int, seed: int) -> tuple[int, ...]:
    """Draws the number of classes of each task.

    All divisions with a class in each task are equally likely.

    >>> sum(draw_sizes(10, 3, seed=0)), len(draw_sizes(10, 3, seed=0))
    (10, 3)

    Raises:
      UserError: there are more tasks than classes, or none.
    """
    if not 1 <= num_tasks <= num_classes:
        raise UserError(f"data.num_tasks={num_tasks}: {num_classes} classes give 1 to {num_classes} tasks")
    ends = 1 + np.sort(rng_for(seed, _SIZES).permutation(num_classes - 1)[: num_tasks - 1])
    return tuple(np.diff([0, *ends, num_classes]).tolist())


def draw_disjoint_classes(sizes: Sequence[int], share: float, seed: int, *, per_task: bool) -> np.ndarray:
    """Draws the disjoint classes of a blurry stream.

    All images of a disjoint class are in one task.

    >>> draw_disjoint_classes((4, 4), 0.5, seed=0, per_task=True).reshape(2, 4).sum(axis=1).tolist()
    [2, 2]

    Args:
      sizes: number of classes of each task.
      share: fraction of disjoint classes.
      seed: of the draw.
      per_task: whether each task has this share, rounded, or the stream.

    Returns:
      bool `[classes]`, in the order of tasks.
    """
    groups = tuple(sizes) if per_task else (sum(sizes),)
    rng = rng_for(seed, _DISJOINT)
    return np.concatenate([rng.permutation(size) < round(share * size) for size in groups])


def blur_tasks(
    labels: np.ndarray, tasks: np.ndarray, is_disjoint: np.ndarray, num_tasks: int, share: float, seed: int
) -> np.ndarray:
    """Draws the task of each training image of a blurry stream.

    A share of the images of each blurry class leaves its task. These images are shuffled together and dealt to all
    tasks in parts of equal size (i-Blurry, Koh et al., 2022; the parts follow the code of Si-Blurry, Moon et al.,
    2023).

    Args:
      labels: int32 `[n]`.
      tasks: int `[classes]`, the task of each class.
      is_disjoint: bool `[classes]`.
      num_tasks: number of tasks.
      share: fraction of the images of each blurry class, rounded.
      seed: of the draw.

    Returns:
      int32 `[n]`.
    """
    rng, moved_rows = rng_for(seed, _IMAGES), [np.zeros(0, np.int64)]
    for label in np.flatnonzero(~is_disjoint):
        rows = np.flatnonzero(labels == label)
        moved_rows.append(rng.permutation(rows)[: round(share * len(rows))])
    task_of_image = tasks[labels].astype(np.int32)
    for task, rows in enumerate(np.array_split(rng.permutation(np.concatenate(moved_rows)), num_tasks)):
        task_of_image[rows] = task
    return task_of_image
