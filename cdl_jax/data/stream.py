"""Splits a labeled data set into a stream of tasks.

A source is a module of `cdl_jax.data.sources`, or a module of yours that is named by its dotted path. It has `OPTIONS`,
its options with their defaults, and `load(options) -> Dataset`. If the sizes are known without the data, it also has
`placeholder(options) -> Dataset`. Class order, tasks and limits are the same for every source and are applied here.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from cdl_jax import plugins
from cdl_jax.data.class_order import SHUFFLES, order_classes, validation_permutation
from cdl_jax.errors import UserError
from cdl_jax.options import Option, check, defaults
from cdl_jax.runtime.console import one_line

OPTIONS: dict[str, Any] = {
    "path": Option("", "file or folder; empty: the usual places, see docs/guides/data.md", resumable=True),
    "num_tasks": Option(10, "number of equal tasks; with task_sizes: their number, or 0"),
    "task_sizes": Option((), "number of classes of each task, if they differ", minimum=1, item_type=int),
    "max_tasks": Option(0, "number of tasks to train, the first ones of the stream; 0: all"),
    "append": Option(
        (), "folders of further classes, each a task behind those of the source; see data.name=folder", item_type=str
    ),
    "class_order": Option(
        "natural", 'natural, python_shuffle, shuffle, or class ids: a tuple, or text such as "5,0,7"'
    ),
    "class_order_seed": Option(
        0,
        "seed of both shuffles and of the validation split; -1: the seed of the run, of config.seeds each its own",
        minimum=-1,
    ),
    "max_train_per_class": Option(0, "training images per class; 0: all"),
    "max_test_per_class": Option(0, "test images per class; 0: all"),
    "validation_fraction": Option(0.0, "fraction of the training set to test on instead of the test set", below=1),
    "num_workers": Option(0, "processes that decode images from disk; 0: threads of this process", resumable=True),
}

_READING = ("path", "num_workers")  # options of reading; the others define the tasks
_OF_STREAMS = ("max_tasks", "append")  # options that change the stream of a source


@dataclass(frozen=True, eq=False)
class Split:
    """Labeled images: an array of one image size, or files of any size.

    >>> split = Split(np.array([0, 1, 0], np.int32), files=("a.png", "b.png", "c.png"))
    >>> len(split), split.take(np.array([2])).files
    (3, ('c.png',))

    labels: int32 `[n]`.
    images: uint8 `[n, height, width, 3]`, or None.
    files: if images is None, n encoded images: paths, or members of an archive (`tar_files.Member`). Else empty.
    """

    labels: np.ndarray
    images: np.ndarray | None = None
    files: Sequence[Any] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "Split":
        """Selects the images at `rows`, int `[m]`.

        Returns itself without a copy if these are all rows in order.
        """
        if len(rows) == len(self) and np.array_equal(rows, np.arange(len(self))):
            return self
        if self.images is not None:
            return Split(self.labels[rows], images=self.images[rows])
        return Split(self.labels[rows], files=tuple(self.files[row] for row in rows))


@runtime_checkable
class StreamData(Protocol):
    """The result of a source: a `Dataset`, or images with boxes, see `data.detection.streams`."""

    def into_stream(self, **options: Any) -> "Stream":
        """Returns the stream of tasks for options of `OPTIONS`."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set as a source loads it. Labels are positions in `class_names`."""

    name: str
    class_names: tuple[str, ...]
    train: Split
    test: Split

    def into_stream(self, **options: Any) -> "Stream":
        """Returns the stream of `split_into_tasks` for its options."""
        return split_into_tasks(self, **options)


@dataclass(frozen=True, eq=False)
class Task:
    """Classes that are learned together: labels `first` to `end - 1` of the stream.

    index: position in the stream, from 0.
    classes: class ids of the data set, in stream order.
    first: the first label.
    train: int32 `[n]`, rows of the stream's train split, ascending.
    test: int32 `[m]`, rows of the stream's test split, ascending.
    """

    index: int
    classes: tuple[int, ...]
    first: int
    train: np.ndarray
    test: np.ndarray

    @property
    def end(self) -> int:
        """The label behind the last of the task."""
        return self.first + len(self.classes)


@dataclass(frozen=True, eq=False)
class Stream:
    """Tasks over two splits.

    Labels are numbered in stream order. Every row belongs to exactly one task.

    name: of the data set.
    class_names: in stream order.
    class_order: class ids of the data set in stream order: label i of the stream is class `class_order[i]`.
    tasks: in the order in which they are learned.
    train, test: the splits that rows of tasks select from.
    """

    problem: ClassVar[str] = "classification"

    name: str
    class_names: tuple[str, ...]
    class_order: tuple[int, ...]
    tasks: tuple[Task, ...]
    train: Split
    test: Split

    @property
    def num_classes(self) -> int:
        """The number of classes of all tasks."""
        return len(self.class_order)

    @property
    def num_tasks(self) -> int:
        """The number of tasks."""
        return len(self.tasks)


def load(options: Mapping[str, Any], seed: int | None = None, *, placeholder: bool = False) -> Stream:
    """Loads a data set and splits it into tasks.

    Args:
      options: `name` of a source, and overrides of `OPTIONS` and of the source's `OPTIONS`.
      seed: of the run, or the first of many (see `streams_for_seeds`): the value of `class_order_seed=-1`.
      placeholder: loads nothing; the stream has the published sizes and no content. Only for a source with
        `placeholder`.

    Raises:
      UserError: the source is unknown, its data is missing or damaged, or cannot be split by the options.
    """
    source = plugins.load_plugin("data.sources", options["name"])
    declared = {**OPTIONS, **source.OPTIONS}
    merged = {key: options.get(key, default) for key, default in defaults(declared).items()}
    check(declared, merged, "data")
    if merged["class_order_seed"] == -1 and seed is not None:
        merged["class_order_seed"] = seed
    if merged["class_order_seed"] == -1:
        raise UserError("data.class_order_seed=-1 is the seed of a run, and there is no run here: set a seed")
    source_options = {key: merged[key] for key in ("path", *source.OPTIONS)}
    function = source.placeholder if placeholder else source.load
    dataset = function(source_options)
    if not isinstance(dataset, StreamData):
        raise UserError(
            f"{plugins.describe_function(function)} must return a {__name__}.Dataset, but returns "
            f"{plugins.describe_type(dataset)}"
        )
    stream = dataset.into_stream(**{key: merged[key] for key in OPTIONS if key not in (*_READING, *_OF_STREAMS)})
    return _change_tasks(stream, dataset, merged) if any(merged[key] for key in _OF_STREAMS) else stream


def _change_tasks(stream, dataset, options):
    """Returns the stream with the options of `_OF_STREAMS`.

    Raises:
      UserError: the stream is of detection, its tasks depend on the seed, or see `task_limits`.
    """
    from cdl_jax.data import task_limits  # it imports this module

    if not isinstance(dataset, Dataset):
        raise UserError("data.max_tasks and data.append need labeled images: images with boxes have all tasks at once")
    if options["max_tasks"]:
        stream = task_limits.first_tasks(stream, options["max_tasks"])
    return task_limits.append_folders(stream, options["append"], len(dataset.class_names), options)


def placeholder(name: str, num_classes: int, train: int, test: int, side: int = 0) -> Dataset:
    """Returns a data set of some sizes without content, to plan a run.

    >>> placeholder("toy", num_classes=2, train=4, test=2, side=8).train.labels.tolist()
    [0, 1, 0, 1]

    Args:
      name: of the data set.
      num_classes: number of classes, all of one size.
      train: number of training images.
      test: number of test images.
      side: of the square images in pixels; 0: files of any size.
    """

    def split(n):
        labels = np.arange(n, dtype=np.int32) % num_classes
        if side:
            return Split(labels, images=np.zeros((n, side, side, 3), np.uint8))
        return Split(labels, files=("",) * n)

    return Dataset(name, tuple(f"class {i}" for i in range(num_classes)), split(train), split(test))


def split_into_tasks(
    dataset: Dataset,
    *,
    num_tasks: int,
    task_sizes: Sequence[int] = (),
    class_order: str | Sequence[int] = "natural",
    class_order_seed: int = 0,
    max_train_per_class: int = 0,
    max_test_per_class: int = 0,
    validation_fraction: float = 0.0,
) -> Stream:
    """Orders the classes and splits them into tasks.

    >>> data = placeholder("toy", num_classes=4, train=8, test=4, side=8)
    >>> stream = split_into_tasks(data, num_tasks=2, class_order=(2, 0, 3, 1))
    >>> [(task.classes, task.train.tolist()) for task in stream.tasks]
    [((2, 0), [0, 2, 4, 6]), ((3, 1), [1, 3, 5, 7])]

    Args:
      dataset: of a source.
      num_tasks: number of tasks of equal size; with `task_sizes`, their number or 0.
      task_sizes: number of classes of each task.
      class_order: see `class_order.order_classes`. Classes that a list omits are not in the stream.
      class_order_seed: of `class_order` and `validation_fraction`.
      max_train_per_class: training images to keep of each class, evenly spaced over the data set; 0: all.
      max_test_per_class: test images to keep of each class, likewise.
      validation_fraction: fraction of the training set that becomes the test set (see
        `class_order.validation_permutation`). The data set's test set is then unused. 0: the test set.

    Raises:
      UserError: the tasks do not fit the classes, or a task or class has no images.
    """
    for split, part in ((dataset.train, "training"), (dataset.test, "test")):
        _check_split(split, f"{part} set of {dataset.name}", len(dataset.class_names))
    printable_names = tuple(one_line(str(name)) for name in dataset.class_names)  # folder names may have any bytes
    dataset = replace(dataset, name=one_line(dataset.name), class_names=printable_names)
    order = order_classes(len(dataset.class_names), class_order, class_order_seed)
    sizes = divide_classes(len(order), num_tasks, tuple(task_sizes))

    train, test = dataset.train, dataset.test
    if validation_fraction:
        permutation = validation_permutation(len(train), class_order_seed)
        num_train = int((1 - validation_fraction) * len(train))
        train = dataset.train.take(np.sort(permutation[:num_train]))
        test = dataset.train.take(np.sort(permutation[num_train:]))
    train = _relabel(train, order, len(dataset.class_names), max_train_per_class, "max_train_per_class")
    test = _relabel(test, order, len(dataset.class_names), max_test_per_class, "max_test_per_class")

    return _assemble(dataset.name, dataset.class_names, order, sizes, train, test, validation_fraction)


def streams_for_seeds(stream: Stream, options: Mapping[str, Any], seeds: Sequence[int]) -> tuple[Stream, ...]:
    """Returns for each seed the stream of a run of that seed, over the same images.

    With `class_order_seed=-1` each seed has its own class order, and so its own labels and rows of tasks. Otherwise all
    seeds have one stream.

    Args:
      stream: of `load` for `options` and the first seed.
      options: of `load`.
      seeds: of the run.

    Raises:
      UserError: the images would differ between seeds.
    """
    options, shared = defaults(OPTIONS, **options), (stream,) * len(seeds)
    if options["class_order_seed"] != -1 or len(seeds) == 1:
        return shared
    if changed := [f"data.{key}" for key in _OF_STREAMS if options[key]]:
        raise UserError(
            f"data.class_order_seed=-1 gives each of config.seeds a class order of all classes, and {changed[0]} "
            "changes them: run the seeds one by one"
        )
    if options["validation_fraction"]:
        raise UserError(
            "data.class_order_seed=-1 with data.validation_fraction holds out different images for each of "
            "config.seeds: run the seeds one by one"
        )
    if not isinstance(options["class_order"], str) or options["class_order"] not in SHUFFLES:
        return shared
    return tuple(_reordered(stream, order_classes(stream.num_classes, options["class_order"], s)) for s in seeds)


def _reordered(stream, order):
    """Returns a stream of all classes of a data set with another class order."""
    if order == stream.class_order:
        return stream
    class_ids = np.asarray(stream.class_order)
    class_names = dict(zip(stream.class_order, stream.class_names, strict=True))
    rank = np.argsort(order).astype(np.int32)
    train, test = (replace(split, labels=rank[class_ids[split.labels]]) for split in (stream.train, stream.test))
    return _assemble(stream.name, class_names, order, [len(task.classes) for task in stream.tasks], train, test)


def _assemble(name, class_names, order, sizes, train, test, validation_fraction=0.0):
    """Returns the stream of splits whose labels are in stream order.

    class_names: name of each class id.
    validation_fraction: fraction of the training set that became the test set.
    """
    tasks = []
    for index, size in enumerate(sizes):
        first = sum(sizes[:index])
        rows = [
            np.flatnonzero((split.labels >= first) & (split.labels < first + size)).astype(np.int32)
            for split in (train, test)
        ]
        tasks.append(Task(index, order[first : first + size], first, *rows))
    stream = Stream(name, tuple(class_names[c] for c in order), order, tuple(tasks), train=train, test=test)
    _check_images(stream, validation_fraction)
    return stream


def divide_classes(num_classes: int, num_tasks: int, task_sizes: tuple[int, ...]) -> tuple[int, ...]:
    """Returns the number of classes of each task.

    >>> divide_classes(6, 3, ()), divide_classes(6, 0, (4, 2))
    ((2, 2, 2), (4, 2))

    Args:
      num_classes: number of classes of all tasks.
      num_tasks: number of tasks of equal size; with `task_sizes`, their number or 0.
      task_sizes: number of classes of each task; empty: equal sizes.

    Raises:
      UserError: the tasks do not fit the classes.
    """
    try:
        task_sizes = tuple(map(operator.index, task_sizes))
    except TypeError:
        raise UserError(f"data.task_sizes={task_sizes} must be whole numbers") from None
    if task_sizes:
        if num_tasks not in (0, len(task_sizes)):
            raise UserError(
                f"data.num_tasks={num_tasks}, but data.task_sizes lists {len(task_sizes)} tasks: set "
                f"num_tasks={len(task_sizes)} or 0"
            )
        if min(task_sizes) < 1 or sum(task_sizes) != num_classes:
            raise UserError(
                f"data.task_sizes={task_sizes} sums up to {sum(task_sizes)}, but there are {num_classes} classes: give "
                f"positive sizes that sum up to {num_classes}"
            )
        return task_sizes
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


def _check_split(split, what, num_classes):
    if split.images is not None and (split.images.dtype != np.uint8 or split.images.shape[3:] != (3,)):
        raise UserError(
            f"{what}: images must be uint8 [n, height, width, 3], not {split.images.dtype} {split.images.shape}"
        )
    num_images = len(split.files) if split.images is None else len(split.images)
    if num_images != len(split):
        raise UserError(f"{what}: {num_images} images but {len(split)} labels")
    if len(split) and not 0 <= split.labels.min() <= split.labels.max() < num_classes:
        raise UserError(
            f"{what}: labels are {split.labels.min()} to {split.labels.max()}, but there are {num_classes} classes"
        )


def _relabel(split, order, num_classes, limit, option):
    """Returns the images of the stream's classes, at most `limit` of each, with labels in stream order."""
    label_of_class = np.full(num_classes, -1, np.int32)
    label_of_class[list(order)] = np.arange(len(order))
    labels = label_of_class[split.labels]
    selected = labels >= 0
    if limit:
        for label in range(len(order)):
            rows = np.flatnonzero(labels == label)
            if len(rows) > limit:
                selected[rows] = False
                selected[rows[np.arange(limit) * len(rows) // limit]] = True
    rows = np.flatnonzero(selected)
    return replace(split.take(rows), labels=labels[rows])


def _check_images(stream, validation_fraction):
    """Raises UserError if a task or class lacks training or test images; `validation_fraction` may be the cause."""
    counts = [np.bincount(split.labels, minlength=stream.num_classes) for split in (stream.train, stream.test)]
    changes = ("lower", "raise") if validation_fraction else ("", "")
    remedies = [
        f"{change} data.validation_fraction={validation_fraction}, add some" if change else "add some"
        for change in changes
    ]
    for task in stream.tasks:
        if not len(task.train):
            first_names = ", ".join(stream.class_names[task.first : task.end][:3])
            raise UserError(
                f"task {task.index} of {stream.name} has no training images (its classes: {first_names}"
                f"{', ...' if len(task.classes) > 3 else ''}): {remedies[0]} or leave its classes out of "
                "data.class_order"
            )
        for label in range(task.first, task.end):
            for images, part, remedy in zip(counts, ("training", "test"), remedies, strict=True):
                if not images[label]:
                    raise UserError(
                        f"class {stream.class_order[label]} ({stream.class_names[label]!r}) of {stream.name} has no "
                        f"{part} images: {remedy} or leave it out of data.class_order"
                    )
