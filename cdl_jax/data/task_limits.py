"""Shortens a stream, and appends tasks of further folders of classes."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from cdl_jax.data import stream as streams
from cdl_jax.data.image_dataset import load_file
from cdl_jax.data.sources import folder as folder_source
from cdl_jax.data.stream import Split, Stream, Task
from cdl_jax.errors import UserError
from cdl_jax.options import defaults

_LIMITS = ("max_train_per_class", "max_test_per_class", "validation_fraction", "class_order_seed")


def first_tasks(stream: Stream, count: int) -> Stream:
    """Returns the stream of the first tasks alone, with their images and classes.

    Args:
      stream: with labels in stream order.
      count: number of tasks, at most those of the stream.

    Raises:
      UserError: the stream has fewer tasks.
    """
    if count > stream.num_tasks:
        raise UserError(f"data.max_tasks={count}: the stream has {stream.num_tasks} tasks: set at most that, or 0: all")
    end = stream.tasks[count - 1].end
    splits = [split.take(np.flatnonzero(split.labels < end)) for split in (stream.train, stream.test)]
    return _with_tasks(stream, stream.class_names[:end], stream.class_order[:end], stream.tasks[:count], splits)


def append_folders(stream: Stream, folders: Sequence[str], first_id: int, options: Mapping[str, Any]) -> Stream:
    """Returns the stream with a further task for each folder of classes.

    Images of a folder get the size of the stream's images if these are an array: the middle of an image is resized
    (bicubic).

    Args:
      stream: of a data source.
      folders: in any layout of `data.name=folder`; each is a task.
      first_id: class id of the first further class.
      options: of `stream.OPTIONS`; limits of the images of a class hold for the folders too, `max_train` for the
        source alone.

    Raises:
      UserError: a folder cannot be read, or has a class whose name the stream has already.
    """
    for path in folders:
        dataset = folder_source.load({**defaults(folder_source.OPTIONS), "path": path})
        appended = streams.split_into_tasks(dataset, num_tasks=1, **{key: options[key] for key in _LIMITS})
        if duplicates := [name for name in appended.class_names if name in stream.class_names]:
            raise UserError(
                f"data.append: {path} has the class {duplicates[0]!r}, which an earlier task has: rename the folder of "
                "the class if it is another one, or remove it"
            )
        ids = tuple(range(first_id, first_id + appended.num_classes))
        first_id += appended.num_classes
        splits = [
            _join(earlier, _like(later, earlier), stream.num_classes)
            for earlier, later in zip((stream.train, stream.test), (appended.train, appended.test), strict=True)
        ]
        names, tasks = (*stream.class_names, *appended.class_names), (*stream.tasks, appended.tasks[0])
        stream = _with_tasks(stream, names, (*stream.class_order, *ids), tasks, splits)
    return stream


def _with_tasks(stream, names, order, tasks, splits) -> Stream:
    """Returns a stream with the classes of given tasks and with new splits."""
    bounds = np.cumsum([0, *(len(task.classes) for task in tasks)]).tolist()
    rows = [
        [np.flatnonzero((split.labels >= first) & (split.labels < end)).astype(np.int32) for split in splits]
        for first, end in zip(bounds, bounds[1:], strict=False)
    ]
    tasks = tuple(
        Task(index, order[first:end], first, *rows[index])
        for index, (first, end) in enumerate(zip(bounds, bounds[1:], strict=False))
    )
    return replace(stream, class_names=names, class_order=order, tasks=tasks, train=splits[0], test=splits[1])


def _join(earlier, later, first_label) -> Split:
    labels = np.concatenate([earlier.labels, later.labels + np.int32(first_label)])
    if earlier.images is not None:
        return Split(labels, images=np.concatenate([earlier.images, later.images]))
    return Split(labels, files=(*earlier.files, *later.files))


def _like(split, pattern) -> Split:
    """Returns a split of files as one array if the other split is an array.

    Images get the size of those of `pattern`.
    """
    if pattern.images is None:
        return split
    from PIL import Image, ImageOps

    height, width = pattern.images.shape[1:3]
    images = np.empty((len(split), height, width, 3), np.uint8)
    for row, file in enumerate(split.files):
        images[row] = np.asarray(ImageOps.fit(load_file(file), (width, height), Image.Resampling.BICUBIC))
    return Split(split.labels, images=images)
