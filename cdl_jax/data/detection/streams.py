"""Divides images with boxes into tasks by category: class-incremental detection.

An image belongs to each task of which it has an object. In a task, objects of other tasks have no annotation, so the
same image shows them as background. With `data.task_sizes` this is the protocol of the divisions 10+10, 15+5 and 19+1
of Pascal VOC, and of 40+40 and 70+10 of COCO.

Source: Shmelkov, Schmid, Alahari, "Incremental Learning of Object Detectors without Catastrophic Forgetting" (arXiv
1708.06977).
"""

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from cdl_jax.data.class_order import order_classes
from cdl_jax.data.detection.coco_files import DetectionSet
from cdl_jax.data.stream import Task
from cdl_jax.data.task_division import divide_classes
from cdl_jax.errors import UserError
from cdl_jax.runtime.console import one_line

# Options for images with one label each.
_OF_LABELS = ("domains", "max_train", "max_train_per_class", "max_test_per_class", "validation_fraction")


@dataclass(frozen=True, eq=False)
class DetectionStream:
    """Tasks over two sets of images with boxes.

    The interface is that of `data.stream.Stream`. Labels of boxes are category ids.

    name: of the data set.
    class_names: of the categories, in stream order.
    class_order: category ids in stream order.
    tasks: `train` and `test` of a task are the rows of the images with at least one target of the task; all images if
      there is one task.
    train, test: the sets that rows of tasks select from.
    """

    problem: ClassVar[str] = "detection"

    name: str
    class_names: tuple[str, ...]
    class_order: tuple[int, ...]
    tasks: tuple[Task, ...]
    train: DetectionSet
    test: DetectionSet

    @property
    def num_classes(self) -> int:
        """The number of categories of all tasks."""
        return len(self.class_order)

    @property
    def num_tasks(self) -> int:
        """The number of tasks."""
        return len(self.tasks)

    def train_sets(self) -> tuple[DetectionSet, ...]:
        """Returns the training set of each task.

        Each set has all images, with the objects of its task alone.
        """
        labels, rows = self.train.objects.labels, np.arange(len(self.train))
        masks = [np.isin(labels, task.classes) for task in self.tasks]
        return tuple(self.train if mask.all() else self.train.select(rows, mask) for mask in masks)


@dataclass(frozen=True, eq=False)
class DetectionData:
    """A data set for detection as a source loads it.

    The training and the test set have the same categories.
    """

    name: str
    train: DetectionSet
    test: DetectionSet

    def into_stream(
        self,
        *,
        num_tasks: int,
        kind: str = "class",
        task_sizes: Sequence[int] = (),
        base_classes: int = 0,
        increment: int = 0,
        class_order: str | Sequence[int] | Sequence[str] = "natural",
        class_order_seed: int = 0,
        **of_labels: Any,
    ) -> DetectionStream:
        """Orders the categories and splits them into tasks.

        Args:
          num_tasks, task_sizes, base_classes, increment, class_order, class_order_seed: as in
            `data.stream.split_into_tasks`. A class order lists names, or positions of categories by ascending id.
            Objects of categories that it omits are not annotated.
          kind: "class"; there are no other streams of images with boxes.
          **of_labels: options for images with one label each; those that select images are 0 or empty.

        Raises:
          UserError: the sets have different categories, the tasks do not fit them, or a task has no image.
        """
        if kind != "class":
            raise UserError(f"data.kind={kind!r} is for images with one label each, not for boxes: use 'class'")
        for key in _OF_LABELS:
            if of_labels.get(key):
                raise UserError(f"data.{key} selects images by their one label, and images with boxes have several: 0")
        ids = tuple(self.train.categories)
        if dict(self.train.categories) != dict(self.test.categories):
            raise UserError(
                f"{self.train.name} and {self.test.name} have different categories: use two parts of one data set"
            )
        names_by_id = [self.train.categories[number] for number in ids]
        order = tuple(ids[i] for i in order_classes(len(ids), class_order, class_order_seed, names_by_id))
        sizes = divide_classes(len(order), num_tasks, task_sizes, base_classes, increment)
        names = tuple(one_line(self.train.categories[number]) for number in order)
        starts = np.cumsum((0, *sizes)).tolist()
        tasks = []
        for index, (first, size) in enumerate(zip(starts, sizes, strict=False)):
            classes = order[first : first + size]
            rows = [_rows(part, classes, len(sizes)) for part in (self.train, self.test)]
            tasks.append(Task(index, classes, first, *rows))
            _check_objects(self, tasks[-1], names[first : first + size])
        return DetectionStream(one_line(self.name), names, order, tuple(tasks), self.train, self.test)


def _rows(data, classes, num_tasks):
    if num_tasks == 1:
        return np.arange(len(data), dtype=np.int32)
    objects = data.objects
    return np.unique(objects.rows[data.trainable & np.isin(objects.labels, classes)]).astype(np.int32)


def _check_objects(data, task, names):
    """Raises UserError if a task has no target in the training or the test set.

    Such a task has no training image, or no object on which to measure it.
    """
    for part, rows in ((data.train, task.train), (data.test, task.test)):
        has_objects = (part.trainable & np.isin(part.objects.labels, task.classes)).any()
        if not (len(rows) and has_objects):
            shown = ", ".join(names[:3]) + ", ..." * (len(names) > 3)
            raise UserError(
                f"task {task.index} has no object in {part.name} (its categories: {shown}): choose data.task_sizes or "
                "data.class_order so that each task has objects in both parts"
            )


def fingerprint(stream: DetectionStream) -> dict[str, str]:
    """Returns the fingerprints of the images and objects of both sets.

    Those of images are made of file names and sizes.

    Returns:
      `{"train/images": "<n> images, <b> bytes, <SHA-256, shortened>", "train/boxes": ...}`, likewise for "test".
      Segmentations that were read add "train/segmentations".

    Raises:
      UserError: a file cannot be read.
    """
    result: dict[str, str] = {}
    for part, data in (("train", stream.train), ("test", stream.test)):
        result |= {f"{part}/images": _digest_of_files(data), f"{part}/boxes": _digest_of_boxes(data)}
        if data.objects.masks is not None:
            result[f"{part}/segmentations"] = _digest_of_masks(data.objects.masks)
    return result


def _digest_of_files(data):
    digest, total = hashlib.sha256(), 0
    for file in data.files:
        try:
            size = os.stat(file).st_size
        except OSError as error:
            raise UserError(f"{file}: cannot be read ({error.strerror}): restore the file") from None
        digest.update(f"{one_line(os.path.basename(file))}/{size}/".encode())
        total += size
    return f"{len(data)} images, {total} bytes, {digest.hexdigest()[:16]}"


def _digest_of_boxes(data):
    o: Mapping[str, np.ndarray] = vars(data.objects)
    digest = hashlib.sha256(str(sorted(data.categories.items())).encode())
    for array in (data.image_ids, data.sizes, *(o[name] for name in ("rows", "labels", "boxes", "areas", "crowds"))):
        digest.update(np.ascontiguousarray(array).tobytes())
    return f"{len(data.objects)} objects, {digest.hexdigest()[:16]}"


def _digest_of_masks(masks):
    digest = hashlib.sha256()
    for runs in masks:
        digest.update(runs + b"/")
    return f"{len(masks)} segmentations, {digest.hexdigest()[:16]}"
