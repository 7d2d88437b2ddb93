"""Divides a set of images with boxes into tasks by category: class-incremental detection.

An image belongs to each task of which it has an object. In a task, objects of other tasks have no annotation, so the
same image shows them as background. This is the protocol of the divisions 10+10, 15+5 and 19+1 of Pascal VOC, and of
40+40 and 70+10 of COCO.

Source: Shmelkov, Schmid, Alahari, "Incremental Learning of Object Detectors without Catastrophic Forgetting" (arXiv
1708.06977).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np

from cdl_jax.data.detection.coco_files import DetectionSet
from cdl_jax.errors import UserError


@dataclass(frozen=True, eq=False)
class DetectionTask:
    """The categories of one task, with its training images.

    index: position in the stream, from 0.
    categories: ids of the task.
    earlier: ids of the tasks before.
    train: the images with at least one target of the task, with the objects of the task alone. Its `categories` are
      those of all tasks, so each task has the same number of outputs.
    """

    index: int
    categories: tuple[int, ...]
    earlier: tuple[int, ...]
    train: DetectionSet

    @property
    def subsets(self) -> dict[str, tuple[int, ...]]:
        """The ids over which an evaluation after this task averages: `old`, `new` and `all`."""
        return {"old": self.earlier, "new": self.categories, "all": self.earlier + self.categories}


def divide(data: DetectionSet, sizes: str | Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """Divides the categories of a set, in ascending order of their ids.

    Args:
      data: the images.
      sizes: number of categories of each task, such as (15, 5) or "15+5".

    Raises:
      UserError: the sizes are not positive integers, or their sum is not the number of categories.
    """
    ids, numbers = tuple(data.categories), _parse_sizes(sizes)
    if sum(numbers) != len(ids):
        raise UserError(
            f"the division {'+'.join(map(str, numbers))} has {sum(numbers)} categories, but {data.name} has "
            f"{len(ids)}: give sizes that sum up to {len(ids)}, or list the ids of each task"
        )
    ends = np.cumsum(numbers).tolist()
    return tuple(ids[end - size : end] for end, size in zip(ends, numbers, strict=True))


def split_into_tasks(data: DetectionSet, division: Iterable[Sequence[int]]) -> tuple[DetectionTask, ...]:
    """Returns the tasks of a division, with their images and objects.

    Args:
      data: training images.
      division: ids of the categories of each task, such as of `divide`. Ids that no task lists are never annotated.

    Raises:
      UserError: a task is empty or has no training image, or an id is unknown or occurs twice.
    """
    division = [tuple(ids) for ids in division]
    _check(data, division)
    outputs = {number: data.categories[number] for number in sorted(sum(division, ()))}
    tasks, earlier = [], ()
    for index, ids in enumerate(division):
        of_task = np.isin(data.objects.labels, ids)
        rows = np.unique(data.objects.rows[of_task & data.trainable])
        if not len(rows):
            names = ", ".join(data.categories[number] for number in ids[:3])
            raise UserError(f"task {index} of {data.name} has no training image (its categories: {names})")
        train = replace(data.select(rows, of_task), name=f"{data.name}, task {index}", categories=outputs)
        tasks.append(DetectionTask(index, ids, earlier, train))
        earlier += ids
    return tuple(tasks)


def _parse_sizes(sizes):
    if isinstance(sizes, str):
        if not re.fullmatch(r"[0-9]{1,4}(\+[0-9]{1,4})*", sizes):
            raise UserError(f"the division {sizes!r} must be sizes of tasks such as '15+5'")
        sizes = [int(size) for size in sizes.split("+")]
    if not sizes or not all(type(size) is int and size > 0 for size in sizes):
        raise UserError(f"the division {tuple(sizes)} must be positive integers, the number of categories of each task")
    return tuple(sizes)


def _check(data, division):
    if not division:
        raise UserError("the division has no tasks: list the category ids of each task")
    first_task: dict[int, int] = {}
    for task, ids in enumerate(division):
        if not ids:
            raise UserError(f"task {task} of the division has no categories: list at least one, or remove the task")
        for number in ids:
            if number not in data.categories:
                known = ", ".join(map(str, list(data.categories)[:8])) + ", ..." * (len(data.categories) > 8)
                raise UserError(f"task {task} of the division: {data.name} has no category {number!r} (it has {known})")
            if number in first_task:
                raise UserError(f"category {number} is in task {first_task[number]} and in task {task}: list it once")
            first_task[number] = task
