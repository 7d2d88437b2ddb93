"""Splits a labeled data set into a stream of tasks.

Streams have three kinds. In a class-incremental stream each task has classes of its own. In a domain-incremental stream
each task has the images of one domain, of the same classes. In a blurry stream some classes have images in several
tasks. In the second and third kind the classes of a task are all classes so far, so the label range of a task begins
at 0.

A source is a module of `cdl_jax.data.sources`, or a module of yours that is named by its dotted path. It has `OPTIONS`,
its options with their defaults, and `load(options) -> Dataset`. If the sizes are known without the data, it also has
`placeholder(options) -> Dataset`. Class order, tasks and limits are the same for every source and are applied here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import numpy as np

from cdl_jax import plugins
from cdl_jax.data import task_division
from cdl_jax.data.class_order import SHUFFLES, order_classes, random_subset, validation_permutation
from cdl_jax.errors import UserError
from cdl_jax.options import Option, check, defaults
from cdl_jax.runtime.console import one_line

KINDS = ("class", "domain", "blurry")

OPTIONS: dict[str, Any] = {
    "path": Option("", "file or folder; empty: the usual places, see docs/guides/data.md", resumable=True),
    "kind": Option(
        "class",
        "what a new task brings: class: new classes; domain: the same classes in a new domain; blurry: new classes, "
        "and some images of classes of other tasks",
        choices=KINDS,
    ),
    "online": Option(False, "True: each image is trained on once; settings with more than one pass are refused"),
    "num_tasks": Option(
        10, "number of equal tasks; with task_sizes or increment: their number, or 0; 0: the tasks of the data set"
    ),
    "task_sizes": Option((), "number of classes of each task, if they differ", minimum=1, item_type=int),
    "base_classes": Option(0, "classes of the first task, 50 in B50-Inc10; 0: as many as increment"),
    "increment": Option(0, "classes of each later task, 10 in B50-Inc10; 0: by num_tasks or task_sizes"),
    "max_tasks": Option(0, "number of tasks to train, the first ones of the stream; 0: all"),
    "append": Option(
        (), "folders of further classes, each a task behind those of the source; see data.name=folder", item_type=str
    ),
    "class_order": Option(
        "natural",
        "natural, python_shuffle, numpy_shuffle, shuffle, or class ids or names: a tuple, text such as "
        '"5,0,7", or a .txt file with one a line',
    ),
    "class_order_seed": Option(
        0,
        "seed of the shuffles, of the validation split and of blurry tasks; -1: the seed of the run, of config.seeds "
        "each its own",
        minimum=-1,
    ),
    "domains": Option(
        (), "for kind domain: names of domains in the order of tasks; empty: all, in the source's order", item_type=str
    ),
    "disjoint_share": Option(
        0.5, "for kind blurry: fraction of the classes of a task with images in that task alone (N)", maximum=1
    ),
    "blurry_share": Option(
        0.1, "for kind blurry: fraction of the images of each other class that is dealt to all tasks (M)", maximum=1
    ),
    "blurry_sizes": Option(
        "equal",
        "for kind blurry: task sizes as in other streams (i-Blurry), or drawn at random with num_tasks (Si-Blurry)",
        choices=("equal", "random"),
    ),
    "max_train": Option(0, "training images of the source, drawn at random without balance over the classes; 0: all"),
    "max_train_per_class": Option(0, "training images per class; 0: all"),
    "max_test_per_class": Option(0, "test images per class; 0: all"),
    "validation_fraction": Option(0.0, "fraction of the training set to test on instead of the test set", below=1),
    "num_workers": Option(0, "processes that decode images from disk; 0: threads of this process", resumable=True),
    "cache_mb": Option(
        1024,
        "MiB of decoded images of files that threads retain for the next epochs; 0: none",
        minimum=0,
        resumable=True,
    ),
}

_READING_OPTIONS = ("path", "num_workers", "cache_mb", "online")  # of reading and training; they define no task
_STREAM_CHANGES = ("max_tasks", "append")  # applied to the stream that a source gives


@dataclass(frozen=True, eq=False)
class Split:
    """Labeled images: an array of one image size, or files of any size.

    >>> split = Split(np.array([0, 1, 0], np.int32), files=("a.png", "b.png", "c.png"))
    >>> len(split), split.take(np.array([2])).files
    (3, ('c.png',))

    labels: int32 `[n]`.
    images: uint8 `[n, height, width, 3]`, or None.
    files: if images is None, n encoded images: paths, or members of an archive (`tar_files.Member`). Else empty.
    domains: int32 `[n]`, position in `Dataset.domains`; -1: a test image for all domains. None: there are no domains.
    """

    labels: np.ndarray
    images: np.ndarray | None = None
    files: Sequence[Any] = ()
    domains: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, rows: np.ndarray) -> "Split":
        """Selects the images at `rows`, int `[m]`.

        Returns itself without a copy if these are all rows in order.
        """
        if len(rows) == len(self) and np.array_equal(rows, np.arange(len(self))):
            return self
        domains = None if self.domains is None else self.domains[rows]
        if self.images is not None:
            return Split(self.labels[rows], images=self.images[rows], domains=domains)
        return Split(self.labels[rows], files=tuple(self.files[row] for row in rows), domains=domains)


@runtime_checkable
class StreamData(Protocol):
    """The result of a source: a `Dataset`, or images with boxes.

    Images with boxes are a `data.detection.streams.DetectionData`.
    """

    def into_stream(self, **options: Any) -> "Stream":
        """Returns the stream of tasks for options of `OPTIONS`."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """A data set as a source loads it. Labels are positions in `class_names`.

    domains: names of the domains to which images belong; empty: there are none.
    task_sizes: number of classes of each task if `num_tasks` is 0; empty: the data set has no tasks of its own.
    """

    name: str
    class_names: tuple[str, ...]
    train: Split
    test: Split
    domains: tuple[str, ...] = ()
    task_sizes: tuple[int, ...] = ()

    def into_stream(self, **options: Any) -> "Stream":
        """Returns the stream of `split_into_tasks` for its options."""
        return split_into_tasks(self, **options)


@dataclass(frozen=True, eq=False)
class Task:
    """Images that are learned together.

    Their labels are `first` to `end - 1` of the stream.

    index: position in the stream, from 0.
    classes: class ids of the data set, in stream order.
    first: the first label; 0 where tasks share classes, so that `classes` are all classes so far.
    train: int32 `[n]`, rows of the stream's train split, ascending.
    test: int32 `[m]`, rows of the stream's test split, ascending.
    domain: name of the domain in a domain-incremental stream, else empty.
    """

    index: int
    classes: tuple[int, ...]
    first: int
    train: np.ndarray
    test: np.ndarray
    domain: str = ""

    @property
    def end(self) -> int:
        """The label behind the last of the task."""
        return self.first + len(self.classes)


@dataclass(frozen=True, eq=False)
class Stream:
    """Tasks over two splits.

    Labels are numbered in stream order. Every training image belongs to exactly one task, and so does every test image
    unless `test_tasks` is negative.

    name: of the data set.
    class_names: in stream order.
    class_order: class ids of the data set in stream order: label i of the stream is class `class_order[i]`.
    tasks: in the order in which they are learned.
    train, test: the splits that rows of tasks select from.
    test_tasks: int32 `[test images]`, the task of each; -1: all tasks. None: the task of the image's class.
    """

    problem: ClassVar[str] = "classification"

    name: str
    class_names: tuple[str, ...]
    class_order: tuple[int, ...]
    tasks: tuple[Task, ...]
    train: Split
    test: Split
    test_tasks: np.ndarray | None = None

    @property
    def num_classes(self) -> int:
        """The number of classes of all tasks."""
        return len(self.class_order)

    @property
    def num_tasks(self) -> int:
        """The number of tasks."""
        return len(self.tasks)

    @property
    def domains(self) -> tuple[str, ...]:
        """The name of each task's domain; empty unless the stream is domain-incremental."""
        return tuple(task.domain for task in self.tasks if task.domain)


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
    stream = dataset.into_stream(
        **{key: merged[key] for key in OPTIONS if key not in (*_READING_OPTIONS, *_STREAM_CHANGES)}
    )
    return _change_tasks(stream, dataset, merged) if any(merged[key] for key in _STREAM_CHANGES) else stream


def _change_tasks(stream, dataset, options):
    """Returns the stream with the options of `_STREAM_CHANGES`.

    Raises:
      UserError: the stream is of detection, its tasks share classes, or see `task_limits`.
    """
    from cdl_jax.data import task_limits  # it imports this module

    if not isinstance(dataset, Dataset):
        raise UserError("data.max_tasks and data.append need labeled images: images with boxes have all tasks at once")
    if options["kind"] != "class":
        raise UserError(
            "data.max_tasks and data.append change the classes of a stream, and tasks of "
            f"data.kind={options['kind']!r} share them: use data.kind=class"
        )
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
    kind: str = "class",
    task_sizes: Sequence[int] = (),
    base_classes: int = 0,
    increment: int = 0,
    class_order: str | Sequence[int] | Sequence[str] = "natural",
    class_order_seed: int = 0,
    domains: Sequence[str] = (),
    disjoint_share: float = 0.5,
    blurry_share: float = 0.1,
    blurry_sizes: str = "equal",
    max_train: int = 0,
    max_train_per_class: int = 0,
    max_test_per_class: int = 0,
    validation_fraction: float = 0.0,
) -> Stream:
    """Orders the classes and splits the images into tasks.

    >>> data = placeholder("toy", num_classes=4, train=8, test=4, side=8)
    >>> stream = split_into_tasks(data, num_tasks=2, class_order=(2, 0, 3, 1))
    >>> [(task.classes, task.train.tolist()) for task in stream.tasks]
    [((2, 0), [0, 2, 4, 6]), ((3, 1), [1, 3, 5, 7])]

    Args:
      dataset: of a source.
      num_tasks: number of tasks of equal size; with `task_sizes` or `increment`, their number or 0; 0: one task for
        each domain, or the tasks of the data set.
      kind: one of `KINDS`, see `OPTIONS`.
      task_sizes, base_classes, increment: see `task_division.divide_classes`.
      class_order: see `class_order.order_classes`. Classes that a list omits are not in the stream.
      class_order_seed: of `class_order`, of `validation_fraction`, of `max_train`, and of the draws of a blurry stream.
      domains: for kind "domain", names in the order of tasks; empty: all domains of the data set.
      disjoint_share, blurry_share: for kind "blurry", see `task_division`.
      blurry_sizes: for kind "blurry": "equal": sizes as in other streams; "random": of `task_division.draw_sizes`.
      max_train: training images to keep, without balance over the classes (see `class_order.random_subset`), out of
        those that are not held out; 0: all.
      max_train_per_class: training images to keep of each class, evenly spaced over the data set; 0: all. In a domain
        stream, of each class in each domain.
      max_test_per_class: test images to keep of each class, likewise.
      validation_fraction: fraction of the training set that becomes the test set (see
        `class_order.validation_permutation`). The data set's test set is then unused. 0: the test set.

    Raises:
      UserError: the tasks do not fit the classes or domains, or a task or class has no images.
    """
    for split, part in ((dataset.train, "training"), (dataset.test, "test")):
        _check_split(split, f"{part} set of {dataset.name}", len(dataset.class_names), len(dataset.domains))
    printable_names = tuple(one_line(str(name)) for name in dataset.class_names)  # folder names may have any bytes
    dataset = replace(dataset, name=one_line(dataset.name), class_names=printable_names)
    if domains and kind != "domain":
        raise UserError(f"data.domains={tuple(domains)} belongs to data.kind='domain': set it, or leave domains out")
    if kind == "domain":
        dataset = _select_domains(dataset, tuple(domains), num_tasks, (task_sizes, base_classes, increment))
    order = order_classes(len(dataset.class_names), class_order, class_order_seed, dataset.class_names)
    if validation_fraction:
        dataset = _hold_out(dataset, validation_fraction, class_order_seed)
    if max_train:
        dataset = replace(dataset, train=_draw(dataset.train, max_train, class_order_seed))
    is_domain = kind == "domain"
    train = _relabel(dataset.train, order, len(dataset.class_names), max_train_per_class, is_domain)
    test = _relabel(dataset.test, order, len(dataset.class_names), max_test_per_class, is_domain)
    parts = (dataset.name, dataset.class_names, order, train, test)
    if is_domain:
        return _assemble_domains(*parts, dataset.domains, validation_fraction)
    is_random = kind == "blurry" and blurry_sizes == "random"
    if is_random and (len(task_sizes) or increment or base_classes):
        raise UserError("data.blurry_sizes='random' draws the sizes of tasks: set data.num_tasks alone")
    if is_random:
        sizes = task_division.draw_sizes(len(order), num_tasks, class_order_seed)
    elif dataset.task_sizes and not (num_tasks or len(task_sizes) or increment or base_classes):
        sizes = _own_sizes(dataset, order)
    else:
        sizes = task_division.divide_classes(len(order), num_tasks, task_sizes, base_classes, increment)
    if kind == "class":
        return _assemble(*parts, sizes, validation_fraction)
    blur = _Blur(disjoint_share, blurry_share, class_order_seed, per_task=not is_random)
    return _assemble_blurry(*parts, sizes, blur, validation_fraction)


@dataclass(frozen=True)
class _Blur:
    """The draws of a blurry stream, see `task_division`."""

    disjoint_share: float
    blurry_share: float
    seed: int
    per_task: bool


def _hold_out(dataset, fraction, seed):
    """Returns the data set with a fraction of its training images as the test set."""
    permutation = validation_permutation(len(dataset.train), seed)
    num_train = int((1 - fraction) * len(dataset.train))
    train, test = (dataset.train.take(np.sort(rows)) for rows in np.split(permutation, [num_train]))
    return replace(dataset, train=train, test=test)


def _draw(train, size, seed):
    """Returns random training images in the order of the data set.

    Raises:
      UserError: there are fewer.
    """
    if size > len(train):
        raise UserError(f"data.max_train={size}: there are {len(train)} training images: set at most that, or 0: all")
    return train.take(np.sort(random_subset(len(train), size, seed)))


def _own_sizes(dataset, order):
    """Returns the sizes of the tasks that a data set has by itself.

    Raises:
      UserError: the class order is not that of the data set.
    """
    if order != tuple(range(len(dataset.class_names))):
        raise UserError(
            f"data.num_tasks=0 keeps the tasks of {dataset.name} and its class order: set data.class_order='natural', "
            "or data.num_tasks"
        )
    return dataset.task_sizes


def _select_domains(dataset, domains, num_tasks, sizes):
    """Returns the data set with the images of the chosen domains, in their order.

    Raises:
      UserError: there are no domains, a name is unknown or listed twice, or the number of tasks is another.
    """
    names = dataset.domains
    if not names:
        raise UserError(
            f"data.kind='domain': {dataset.name} has no domains; choose a source with domains, such as domain_folder, "
            "or data.kind='class'"
        )
    for domain in domains:
        if domain not in names:
            raise UserError(
                f"data.domains: {dataset.name} has no domain {domain!r}: {plugins.did_you_mean(domain, names)}"
            )
        if domains.count(domain) > 1:
            raise UserError(f"data.domains: {domain!r} is listed twice; each domain is one task")
    domains = domains or names
    printable_names = tuple(one_line(domain) for domain in domains)
    if num_tasks not in (0, len(domains)) or any(np.size(size) and np.any(size) for size in sizes):
        raise UserError(
            f"data.kind='domain' makes one task of each of {len(domains)} domains: set data.num_tasks=0, and leave out "
            "data.task_sizes, data.base_classes and data.increment"
        )
    position = np.full(len(names) + 1, -2, np.int32)  # the last is that of -1
    position[[names.index(domain) for domain in domains]], position[-1] = np.arange(len(domains)), -1

    def select(split):
        rows = np.flatnonzero(position[split.domains] > -2)
        return replace(split.take(rows), domains=position[split.domains[rows]])

    return replace(dataset, train=select(dataset.train), test=select(dataset.test), domains=printable_names)


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
    if changed := [f"data.{key}" for key in _STREAM_CHANGES if options[key]]:
        raise UserError(
            f"data.class_order_seed=-1 gives each of config.seeds a class order of all classes, and {changed[0]} "
            "changes them: run the seeds one by one"
        )
    if options["validation_fraction"]:
        raise UserError(
            "data.class_order_seed=-1 with data.validation_fraction holds out different images for each of "
            "config.seeds: run the seeds one by one"
        )
    if options["max_train"]:
        raise UserError(
            "data.class_order_seed=-1 with data.max_train draws different images for each of config.seeds: run the "
            "seeds one by one"
        )
    if options["kind"] == "blurry":
        raise UserError(
            "data.class_order_seed=-1 with data.kind='blurry' draws tasks of other sizes for each of config.seeds: run "
            "the seeds one by one"
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
    if stream.domains:
        return _assemble_domains(stream.name, class_names, order, train, test, stream.domains)
    return _assemble(stream.name, class_names, order, train, test, [len(task.classes) for task in stream.tasks])


def _assemble(name, class_names, order, train, test, sizes, validation_fraction=0.0):
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


def _assemble_domains(name, class_names, order, train, test, domains, validation_fraction=0.0):
    """Returns the stream with a task for each domain.

    train, test: splits whose labels are in stream order.
    """
    tasks = []
    for index, domain in enumerate(domains):
        rows = [np.flatnonzero(np.isin(split.domains, (index, -1))).astype(np.int32) for split in (train, test)]
        for part, task_rows in zip(("training", "test"), rows, strict=True):
            if not len(task_rows):
                raise UserError(
                    f"domain {domain!r} of {name} has no {part} images: add some, or leave it out of data.domains"
                )
        tasks.append(Task(index, order, 0, *rows, domain))
    stream = Stream(name, tuple(class_names[c] for c in order), order, tuple(tasks), train, test, test.domains)
    _check_images(stream, validation_fraction)
    return stream


def _assemble_blurry(name, class_names, order, train, test, sizes, blur, validation_fraction):
    """Returns the blurry stream of splits whose labels are in the order of tasks.

    Labels are numbered anew by the first task with a training image, so that the classes seen until a task are the
    first labels.
    """
    tasks = np.repeat(np.arange(len(sizes)), sizes)
    is_disjoint = task_division.draw_disjoint_classes(sizes, blur.disjoint_share, blur.seed, per_task=blur.per_task)
    task_of_image = task_division.blur_tasks(train.labels, tasks, is_disjoint, len(sizes), blur.blurry_share, blur.seed)
    first_tasks = tasks.copy()  # a class without training images is reported below
    np.minimum.at(first_tasks, train.labels, task_of_image)
    by_first = np.argsort(first_tasks, kind="stable")
    rank = np.argsort(by_first).astype(np.int32)
    order, test_tasks = tuple(order[c] for c in by_first), tasks[test.labels].astype(np.int32)
    train, test = (replace(split, labels=rank[split.labels]) for split in (train, test))
    new_tasks = []
    for index in range(len(sizes)):
        rows = [np.flatnonzero(task_ids == index).astype(np.int32) for task_ids in (task_of_image, test_tasks)]
        new_tasks.append(Task(index, order[: int((first_tasks <= index).sum())], 0, *rows))
    stream = Stream(name, tuple(class_names[c] for c in order), order, tuple(new_tasks), train, test, test_tasks)
    _check_images(stream, validation_fraction)
    return stream


def _check_split(split, title, num_classes, num_domains):
    if split.images is not None and (split.images.dtype != np.uint8 or split.images.shape[3:] != (3,)):
        raise UserError(
            f"{title}: images must be uint8 [n, height, width, 3], not {split.images.dtype} {split.images.shape}"
        )
    num_images = len(split.files) if split.images is None else len(split.images)
    if num_images != len(split):
        raise UserError(f"{title}: {num_images} images but {len(split)} labels")
    if len(split) and not 0 <= split.labels.min() <= split.labels.max() < num_classes:
        raise UserError(
            f"{title}: labels are {split.labels.min()} to {split.labels.max()}, but there are {num_classes} classes"
        )
    if num_domains and (np.shape(split.domains) != (len(split),) or np.any(split.domains >= num_domains)):
        raise UserError(f"{title}: domains must be int32 [n], numbers below the {num_domains} domains of the data set")


def _relabel(split, order, num_classes, limit, of_domains):
    """Returns the images of the stream's classes, with labels in stream order.

    Of each class at most `limit` images are selected.

    of_domains: whether the limit holds in each domain.
    """
    label_of_class = np.full(num_classes, -1, np.int32)
    label_of_class[list(order)] = np.arange(len(order))
    labels = label_of_class[split.labels]
    selected = labels >= 0
    if limit:
        groups = labels + (split.domains.astype(np.int64) + 1) * len(order) if of_domains else labels
        for group in np.unique(groups[selected]):
            rows = np.flatnonzero(selected & (groups == group))
            if len(rows) > limit:
                selected[rows] = False
                selected[rows[np.arange(limit) * len(rows) // limit]] = True
    rows = np.flatnonzero(selected)
    return replace(split.take(rows), labels=labels[rows])


def _check_images(stream, validation_fraction):
    """Raises UserError if a task or a class lacks training or test images.

    `validation_fraction` may be the cause.
    """
    counts = [np.bincount(split.labels, minlength=stream.num_classes) for split in (stream.train, stream.test)]
    changes = ("lower", "raise") if validation_fraction else ("", "")
    remedies = [
        f"{change} data.validation_fraction={validation_fraction}, add some" if change else "add some"
        for change in changes
    ]
    checked = 0  # labels; tasks may share them
    for task in stream.tasks:
        if not len(task.train):
            first_names = ", ".join(stream.class_names[task.first : task.end][:3])
            raise UserError(
                f"task {task.index} of {stream.name} has no training images (its classes: {first_names}"
                f"{', ...' if len(task.classes) > 3 else ''}): {remedies[0]} or leave its classes out of "
                "data.class_order"
            )
        unchecked, checked = range(max(task.first, checked), task.end), task.end
        for label in unchecked:
            for images, part, remedy in zip(counts, ("training", "test"), remedies, strict=True):
                if not images[label]:
                    raise UserError(
                        f"class {stream.class_order[label]} ({stream.class_names[label]!r}) of {stream.name} has no "
                        f"{part} images: {remedy} or leave it out of data.class_order"
                    )
