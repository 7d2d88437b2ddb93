"""A stream of tasks: a labelled data set, its classes put in an order and dealt out to tasks.

A source (one module of `cdl_jax.data.sources`, or a dotted path of the user's) offers `OPTIONS`, its own options with
their defaults, and `load(options) -> Dataset`. Where sizes are known without the data, it also offers
`placeholder(options) -> Dataset`. All that follows is the same for every source and happens here.
"""

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from cdl_jax import plugins
from cdl_jax.data.class_order import SHUFFLES, order_classes, validation_permutation
from cdl_jax.errors import UserError
from cdl_jax.runtime.console import one_line

OPTIONS: dict[str, Any] = {
    "path": "",  # file or folder; empty: the usual places, see docs/guides/data.md
    "num_tasks": 10,  # equal tasks; with task_sizes: their number, or 0
    "task_sizes": (),  # classes of each task, where they are not equal
    "class_order": "natural",  # natural, python_shuffle, shuffle, or class ids: a tuple, or text such as "5,0,7"
    # Of both shuffles and of the validation split; -1: the run's own seed, of config.seeds each one's own.
    "class_order_seed": 0,
    "max_train_per_class": 0,  # 0: all
    "max_test_per_class": 0,
    "validation": 0.0,  # fraction of the training set to test on instead of the test set
}


@dataclass(frozen=True, eq=False)
class Split:
    """Labelled pictures, either in memory and all of one size, or as files of any size.

    labels: int32 `[n]`.
    images: uint8 `[n, height, width, 3]`, or None.
    files: n encoded pictures where images is None, else empty: paths, or members of an archive (`tar_files.Member`).
    """

    labels: np.ndarray
    images: np.ndarray | None = None
    files: Sequence[Any] = ()

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "Split":
        """The pictures at `rows` (int `[m]`); itself, uncopied, where these are all of them in order."""
        if len(rows) == len(self) and np.array_equal(rows, np.arange(len(self))):
            return self
        if self.images is not None:
            return Split(self.labels[rows], images=self.images[rows])
        return Split(self.labels[rows], files=tuple(self.files[row] for row in rows))


@dataclass(frozen=True, eq=False)
class Dataset:
    """What a source gives: labels are positions in `class_names`."""

    name: str
    class_names: tuple[str, ...]
    train: Split
    test: Split


@dataclass(frozen=True, eq=False)
class Task:
    """Classes that are learnt together; in the stream's numbering they are the labels `first` to `end - 1`.

    index: place in the stream, from 0.
    classes: the data set's own class ids, in stream order.
    train, test: int32 rows of the stream's train and test split, ascending.
    """

    index: int
    classes: tuple[int, ...]
    first: int
    train: np.ndarray
    test: np.ndarray

    @property
    def end(self) -> int:
        return self.first + len(self.classes)


@dataclass(frozen=True, eq=False)
class Stream:
    """Tasks over two splits whose labels are numbered in stream order; every row belongs to exactly one task.

    class_names: in stream order.
    class_order: the data set's class ids in stream order, so label i of the stream is class `class_order[i]`.
    """

    name: str
    class_names: tuple[str, ...]
    class_order: tuple[int, ...]
    tasks: tuple[Task, ...]
    train: Split
    test: Split

    @property
    def num_classes(self) -> int:
        return len(self.class_order)

    @property
    def num_tasks(self) -> int:
        return len(self.tasks)


def load(options: Mapping[str, Any], seed: int | None = None, *, placeholder: bool = False) -> Stream:
    """The stream that `options` describe: `name` (a source), the keys of `OPTIONS` and those of the source's `OPTIONS`.

    With `placeholder` it has the data set's published sizes and no content; only for a source that offers them.

    Args:
      seed: of the run, the first of several (see `streams_for_seeds`): the value of `class_order_seed=-1`.

    Raises:
      UserError: no such source, its data is missing or damaged, or cannot be split as asked.
    """
    name = options["name"]
    source = plugins.load_plugin("data.sources", name)
    if not hasattr(source, "load") or not hasattr(source, "OPTIONS"):
        raise UserError(f"{name} is no data source: it needs OPTIONS (a dict) and load(options) -> Dataset")
    defaults = {**OPTIONS, **source.OPTIONS}
    chosen = {key: options[key] if key in options else default for key, default in defaults.items()}
    if chosen["class_order_seed"] == -1 and seed is not None:
        chosen["class_order_seed"] = seed
    if (given := chosen["class_order_seed"]) == -1:
        raise UserError("data.class_order_seed=-1 stands for a run's seed, and there is no run here: name a seed")
    if given < 0:
        raise UserError(f"data.class_order_seed={given}: name a seed that is not negative, or -1, the run's own")
    own = {key: chosen[key] for key in ("path", *source.OPTIONS)}
    dataset = source.placeholder(own) if placeholder else source.load(own)
    return split_into_tasks(dataset, **{key: chosen[key] for key in OPTIONS if key != "path"})


def placeholder(name: str, num_classes: int, train: int, test: int, side: int = 0) -> Dataset:
    """A data set of the given sizes without its content, equally many pictures a class: what a run can be planned with.

    Args:
      side: of the square pictures; 0 where they are files of any size.
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
    validation: float = 0.0,
) -> Stream:
    """Puts the classes in order and deals them out to tasks.

    Args:
      num_tasks: number of equal tasks; with `task_sizes`, their number or 0.
      task_sizes: number of classes of each task.
      class_order: see `order_classes`; a list may leave classes out, which are then no part of the stream.
      max_train_per_class, max_test_per_class: keep so many pictures a class, evenly spaced over the data set; 0: all.
      validation: test on this fraction of the training set (`validation_permutation` with `class_order_seed`) and leave
        the test set alone.

    Raises:
      UserError: tasks that do not fit the classes, an impossible option, or a task or class without pictures.
    """
    for split, part in ((dataset.train, "training"), (dataset.test, "test")):
        _check_split(split, f"{part} set of {dataset.name}", len(dataset.class_names))
    shown = tuple(one_line(str(name)) for name in dataset.class_names)  # folders may have any bytes as names
    dataset = replace(dataset, name=one_line(dataset.name), class_names=shown)
    order = order_classes(len(dataset.class_names), class_order, class_order_seed)
    sizes = _task_sizes(len(order), num_tasks, tuple(task_sizes))

    train, test = dataset.train, dataset.test
    if validation:
        if not 0 < validation < 1:
            raise UserError(f"data.validation={validation} must be a fraction: 0 <= validation < 1")
        permutation = validation_permutation(len(train), class_order_seed)
        kept = int((1 - validation) * len(train))
        train, test = (dataset.train.take(np.sort(rows)) for rows in (permutation[:kept], permutation[kept:]))
    train = _in_stream_order(train, order, len(dataset.class_names), max_train_per_class, "max_train_per_class")
    test = _in_stream_order(test, order, len(dataset.class_names), max_test_per_class, "max_test_per_class")

    return _assemble(dataset.name, dataset.class_names, order, sizes, train, test)


def streams_for_seeds(stream: Stream, options: Mapping[str, Any], seeds: Sequence[int]) -> tuple[Stream, ...]:
    """For each seed the stream that a run of it alone would have, of the same pictures.

    The same one for all, but for `class_order_seed=-1`: then each has labels, and so rows of tasks, of its own.

    Args:
      stream: what `load` gives for `options` and the first seed.

    Raises:
      UserError: the pictures would differ between seeds.
    """
    options, shared = {**OPTIONS, **options}, (stream,) * len(seeds)
    if options["class_order_seed"] != -1 or len(seeds) == 1:
        return shared
    if options["validation"]:
        raise UserError(
            "data.class_order_seed=-1 with data.validation holds out other pictures for each of config.seeds: run the "
            "seeds one by one"
        )
    if not isinstance(options["class_order"], str) or options["class_order"] not in SHUFFLES:
        return shared
    return tuple(_reordered(stream, order_classes(stream.num_classes, options["class_order"], s)) for s in seeds)


def _reordered(stream, order):
    """The stream with the same classes, all of the data set, in another order."""
    if order == stream.class_order:
        return stream
    ids, names_of = np.asarray(stream.class_order), dict(zip(stream.class_order, stream.class_names, strict=True))
    rank = np.argsort(order).astype(np.int32)
    train, test = (replace(split, labels=rank[ids[split.labels]]) for split in (stream.train, stream.test))
    return _assemble(stream.name, names_of, order, [len(task.classes) for task in stream.tasks], train, test)


def _assemble(name, names_of, order, sizes, train, test):
    """The stream of splits whose labels are in stream order; names_of: class id -> name."""
    tasks = []
    for index, size in enumerate(sizes):
        first = sum(sizes[:index])
        rows = [
            np.flatnonzero((split.labels >= first) & (split.labels < first + size)).astype(np.int32)
            for split in (train, test)
        ]
        tasks.append(Task(index, order[first : first + size], first, *rows))
    stream = Stream(name, tuple(names_of[c] for c in order), order, tuple(tasks), train=train, test=test)
    _check_pictures(stream)
    return stream


def _task_sizes(num_classes, num_tasks, task_sizes):
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
    size, rest = divmod(num_classes, num_tasks)
    if rest:
        divisors = [d for d in range(1, num_classes + 1) if num_classes % d == 0]
        below, above = max(d for d in divisors if d < num_tasks), min(d for d in divisors if d > num_tasks)
        example = ",".join(str(size + (task < rest)) for task in range(num_tasks))
        raise UserError(
            f"data.num_tasks={num_tasks} does not divide {num_classes} classes: set num_tasks={below} or {above}, or "
            f"data.task_sizes=({example})"
        )
    return (size,) * num_tasks


def _check_split(split, what, num_classes):
    if split.images is not None and (split.images.dtype != np.uint8 or split.images.shape[3:] != (3,)):
        raise UserError(
            f"{what}: pictures must be uint8 [n, height, width, 3], not {split.images.dtype} {split.images.shape}"
        )
    pictures = len(split.files) if split.images is None else len(split.images)
    if pictures != len(split):
        raise UserError(f"{what}: {pictures} pictures but {len(split)} labels")
    if len(split) and not 0 <= split.labels.min() <= split.labels.max() < num_classes:
        raise UserError(
            f"{what}: labels go from {split.labels.min()} to {split.labels.max()}, but there are {num_classes} classes"
        )


def _in_stream_order(split, order, num_classes, limit, option):
    """The rows of the stream's classes, at most `limit` a class, with labels in stream order."""
    if limit < 0:
        raise UserError(f"data.{option}={limit} must not be negative (0: all)")
    label_of_class = np.full(num_classes, -1, np.int32)
    label_of_class[list(order)] = np.arange(len(order))
    labels = label_of_class[split.labels]
    keep = labels >= 0
    if limit:
        for label in range(len(order)):
            rows = np.flatnonzero(labels == label)
            if len(rows) > limit:
                keep[rows] = False
                keep[rows[np.arange(limit) * len(rows) // limit]] = True
    rows = np.flatnonzero(keep)
    return replace(split.take(rows), labels=labels[rows])


def _check_pictures(stream):
    tested = np.bincount(stream.test.labels, minlength=stream.num_classes)
    for task in stream.tasks:
        if not len(task.train):
            listed = ", ".join(stream.class_names[task.first : task.end][:3])
            raise UserError(
                f"task {task.index} of {stream.name} has no training pictures (its classes: {listed}"
                f"{', ...' if len(task.classes) > 3 else ''}): add some or leave its classes out of data.class_order"
            )
        for label in range(task.first, task.end):
            if not tested[label]:
                raise UserError(
                    f"class {stream.class_order[label]} ({stream.class_names[label]!r}) of {stream.name} has no test "
                    "pictures: add some or leave it out of data.class_order"
                )
