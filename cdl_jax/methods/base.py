"""Defines the contract between a method and the training loop.

A method's file has `defaults(**choices) -> dict`, which returns its config sections, and
`build(config, info) -> Method`. A method for detection also has `PROBLEM = "detection"`: the `images` that its
functions take are then the batch of a `data.detection.loader.StreamLoader`, and its `logits` of a network are a dict of
the `logits` and `boxes` of queries. A method that learns to generate images has `PROBLEM = "generation"`, and is a
`Generates`.

Variables are a nested dict `{network: {part: arrays}}`. A *path* is the tuple of keys that leads to a leaf. Everything
that a method does to variables is a pure function that can be compiled. Tasks differ only in the arrays of the
`Context`.
"""

import abc
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar

import jax
import numpy as np
from flax import traverse_util

from cdl_jax.losses import Context
from cdl_jax.optim import Optimizer

Variables = dict[str, Any]
Path = tuple[str, ...]


@dataclass(frozen=True)
class StreamInfo:
    """Describes a stream to a method.

    Attributes:
      num_classes: number of classes of all tasks.
      task_sizes: number of classes of each task.
      class_names: in stream order; empty where each seed has a class order of its own.
      train_images: number of training images.
      class_ids: ids of the classes in the data set, in stream order; for detection the category ids.
      first_labels: first label of each task; empty: each task has the labels behind those of the task before.
      domains: names of the domains, one a task; empty: the stream is not domain-incremental.
    """

    num_classes: int
    task_sizes: tuple[int, ...]
    class_names: tuple[str, ...] = ()
    train_images: int = 0
    class_ids: tuple[int, ...] = ()
    first_labels: tuple[int, ...] = ()
    domains: tuple[str, ...] = ()

    @property
    def num_tasks(self) -> int:
        return len(self.task_sizes)

    @property
    def label_ranges(self) -> tuple[tuple[int, int], ...]:
        """Returns (first label, last label + 1) of each task.

        >>> StreamInfo(5, (2, 3)).label_ranges, StreamInfo(3, (3, 3), first_labels=(0, 0)).label_ranges
        (((0, 2), (2, 5)), ((0, 3), (0, 3)))
        """
        firsts = self.first_labels or (sum(self.task_sizes[:task]) for task in range(self.num_tasks))
        return tuple((first, first + size) for first, size in zip(firsts, self.task_sizes, strict=True))

    @property
    def shares_classes(self) -> bool:
        """Returns whether tasks share classes, as domain-incremental and blurry ones."""
        return sum(self.task_sizes) > self.num_classes

    @property
    def classes_of(self) -> np.ndarray:
        """Returns the classes of each task, bool `[tasks, classes]`.

        Classes are numbered in stream order.

        >>> StreamInfo(num_classes=3, task_sizes=(2, 1)).classes_of.tolist()
        [[True, True, False], [False, False, True]]
        """
        first, end = np.array(self.label_ranges).T[..., None]
        labels = np.arange(self.num_classes)
        return (labels >= first) & (labels < end)


@dataclass(frozen=True)
class Outcome:
    """Holds what a loss returns beside its value.

    Attributes:
      metrics: name -> scalar, logged.
      variables: partial variables that replace the old ones after the update, such as running statistics.
      batch: entries that are added to the batch for later updates of the same step.
    """

    metrics: Mapping[str, jax.Array]
    variables: Variables = field(default_factory=dict)
    batch: Mapping[str, Any] = field(default_factory=dict)


jax.tree_util.register_dataclass(Outcome, data_fields=["metrics", "variables", "batch"], meta_fields=[])


@dataclass(frozen=True)
class Update:
    """Describes one optimizer step, or several in a row that share an optimizer state.

    Attributes:
      trainable: path -> whether the optimizer changes the leaf.
      optimizer: transformation and learning rate.
      loss: `(variables, batch, context) -> (scalar, Outcome)`. A batch has `images` float32
        `[batch, size, size, 3]`, `labels` int32 `[batch]`, `rows` int32 `[batch]` (indices into the training images),
        and the entries that earlier updates of the step added.
      repeats: number of optimizer steps, default 1. The batch is divided into as many equal parts, in order. Step i
        takes part i, the variables and the optimizer state of the step before, and the key
        `fold_in(context.key, i)`. The metrics are those of the last step. With several steps the outcome has no batch.
    """

    trainable: Callable[[Path], bool]
    optimizer: Optimizer
    loss: Callable[[Variables, Mapping[str, Any], Context], tuple[jax.Array, Outcome]]
    repeats: int = 1


@dataclass(frozen=True)
class Replay:
    """Describes a memory of images of earlier tasks that join every batch.

    Attributes:
      capacity: number of images in the memory.
      batch: number of images that join a batch, behind the task's own.
      balance: how the capacity is divided: "experience" (over tasks), "class" (see `data.replay`), or "herding" (over
        classes; a network selects the images, see `HerdsMemory`).
      per_class: images of each class in a herded memory; 0: an equal share of the capacity.
    """

    capacity: int
    batch: int
    balance: str = "experience"
    per_class: int = 0


@dataclass(frozen=True)
class Phase:
    """Describes `epochs` passes over a task's data.

    Each batch goes through all updates inside one compiled step.

    Attributes:
      name: of the phase, in logs and results.
      epochs: passes over the data.
      updates: applied in order.
      order: number from which the batch order and the augmentation of the phase are drawn. Phases of equal `order`
        train on the same batches. Default 0.
      sequential: every image once an epoch, in order, with the preprocessing of evaluation. The last batch is padded;
        `context.weight` is 0 for the padding.
      tasks: which tasks have this phase: "all", the "first", all "later" ones, or "none".
      replay: memory whose images join the batches; only in phases for later tasks.
      num_public: number of the method's public images in each batch, under `batch["public"]`.
      since: index of the first task that has this phase.
      balanced: batches come from a herded memory alone, with the task's own classes in it.
      herding_network: network whose features select the memory of the task's classes after the phase; "": none.
      finish: `(variables, context) -> variables` after the phase's last step, compiled once. None: nothing follows.
    """

    name: str
    epochs: int
    updates: tuple[Update, ...]
    order: int = 0
    sequential: bool = False
    tasks: str = "all"
    replay: Replay | None = None
    num_public: int = 0
    since: int = 0
    balanced: bool = False
    herding_network: str = ""
    finish: Callable[[Variables, Context], Variables] | None = None

    def epochs_of(self, task: int) -> int:
        """Returns the number of passes over the data of the task with this index.

        >>> [Phase("replay", 5, (), tasks="later").epochs_of(task) for task in range(3)]
        [0, 5, 5]
        """
        skipped = {"all": False, "first": task > 0, "later": task == 0, "none": True}[self.tasks]
        return 0 if skipped or task < self.since else self.epochs


@dataclass(frozen=True)
class Probe:
    """Describes a prediction of `--mode=analyze` with one part of the method changed.

    Attributes:
      predict: `(variables, images, context) -> {network: logits [batch, classes]}`. A sweep returns
        `{str(value): logits}`.
      values: the numbers of a sweep, in order; empty where nothing is swept.
      usual: the number that the method itself uses, one of `values`.
      network: the network whose prediction a sweep changes.
    """

    predict: Callable[[Variables, jax.Array, Context], dict]
    values: tuple[float, ...] = ()
    usual: float | None = None
    network: str = ""


class Method(abc.ABC):
    """Defines how networks learn a stream.

    Subclasses are frozen dataclasses. All functions are pure. A subclass defines `networks`, `phases`, `image_size`,
    `init` and `predict`. Everything else has a default.

    Attributes:
      networks: names of the networks that are evaluated, in the order of tables.
      phases: what each task goes through; fixed for the run, so each phase is compiled once.
      image_size: side of the square images that the networks take, in pixels.
      external: the evaluated networks that this run does not train.
      pairs: (teacher, student) names whose agreement is evaluated.
      headline: networks whose mean accuracy is the main number of a run and selects its best epoch. Empty, the
        default: the last network of `networks`.
      rounds: number of rounds in a task, default 1. A round goes through all phases, with `epochs // rounds` epochs of
        each. Optimizer states and schedules continue from round to round.
      loss_classes: classes of the softmax in the loss of the labels: "current", the default, "seen", "all", or ""
        without a softmax. Streams on which this loss is always 0 are refused, and with "current" weight decay that an
        optimizer normalizes. The attribute changes no loss, so a method whose option selects the classes overrides it
        by a property that returns the option.
      predict_over: classes from which evaluation selects the prediction: those "seen" so far, the default, or "all",
        which belongs to a loss over all classes. A property overrides it likewise.
      streams: for each learner with a stream of its own, the labels in its class order; else empty. Batches then have
        an axis of learners in front of the axis of images.
      stream_of: network -> index into `streams` of the stream that evaluates it; other networks use the run's stream.
      num_parallel_networks: number of networks that can be divided over the mesh's axis "peer".
      num_public: number of training images, drawn once for the run, that all learners see without labels.
      bookkeeping: top-level names of variables that are no parameters, such as caches and memories.
      mean_groups: name -> networks whose metrics are averaged in results.json under this name.
      label_maps: whether training batches of images with boxes need label maps, see `data.detection.loader`.
      supports_batch_statistics: whether `teacher_outputs` can normalize with the statistics of the batch.
      metric: name of the numbers of the accuracy matrix; "", the default: that of the method's problem, such as
        "accuracy". A property overrides it likewise.
      setting: name of the method's setting in reports and tables; "", the default: they show the options that differ.
      needs_own_classes: why each task must have classes that no other task has, as the end of a message; "", the
        default: tasks may share classes.
    """

    networks: tuple[str, ...]
    phases: tuple[Phase, ...]
    image_size: int
    external: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    headline: tuple[str, ...] = ()
    rounds: int = 1
    loss_classes: str = "current"
    predict_over: str = "seen"
    streams: tuple[tuple[int, ...], ...] = ()
    stream_of: Mapping[str, int] = {}  # noqa: RUF012
    num_parallel_networks: int = 1
    num_public: int = 0
    bookkeeping: frozenset[str] = frozenset()
    mean_groups: Mapping[str, tuple[str, ...]] = {}  # noqa: RUF012
    label_maps: bool = False
    supports_batch_statistics: ClassVar[bool] = False
    metric: str = ""
    setting: str = ""
    needs_own_classes: str = ""

    @abc.abstractmethod
    def init(self, key: jax.Array) -> Variables:
        """Returns new variables with random weights everywhere."""

    @abc.abstractmethod
    def predict(self, variables: Variables, images: jax.Array, context: Context) -> tuple[dict, dict]:
        """Returns the logits and the counts of each network.

        Returns:
          `{network: logits [batch, classes]}` and `{network: {name: [batch, n]}}`. The second dict holds counts, which
          evaluation sums over images.
        """

    def load_pretrained(self, variables: Variables) -> Variables:
        """Returns the variables with the pretrained weights of the config's files.

        Args:
          variables: of the method, or their shapes.
        """
        return variables

    def is_frozen(self, path: Path) -> bool:
        """Returns whether a leaf never changes in the run; frozen leaves are saved once."""
        return False

    def start_task(self, variables: Variables, context: Context) -> Variables:
        """Returns the variables with which a task begins."""
        return variables

    def end_task(self, variables: Variables, context: Context) -> Variables:
        """Returns the variables after the last step of a task, before its evaluation."""
        return variables

    def extra_metrics(self, logits: dict, labels: jax.Array, context: Context) -> dict[str, jax.Array]:
        """Returns `{name: [batch]}`, which evaluation averages over images.

        Args:
          logits: network -> `[batch, classes]`, from `predict`.
          labels: int32 `[batch]`.
        """
        return {}

    def counters(self, mutable: Variables) -> dict[str, float]:
        """Returns numbers that the method has counted until the end of a task."""
        return {}

    def published_parameters(self, variables: Variables) -> dict[str, int]:
        """Returns `{network: number of parameters}` of the published program.

        A method overrides this function if the published program has parameters without use.

        Args:
          variables: of the method, or their shapes.
        """
        return {}

    def teacher_outputs(
        self, network: str, variables: Variables, images: jax.Array, context: Context, use_batch_statistics=False
    ) -> dict[str, jax.Array]:
        """Returns the outputs of a network as the teacher of another run.

        The outputs are `logits` and other named outputs.

        use_batch_statistics: normalize as in training; only where `supports_batch_statistics`.
        """
        return {"logits": self.predict(variables, images, context)[0][network]}

    def features(self, variables: Variables, images: jax.Array, context: Context) -> dict[str, dict]:
        """Returns the features of test images, `{network: {layer: [batch, ...]}}`.

        A method without features returns {}.
        """
        return {}

    def probes(self) -> dict[str, Probe]:
        """Returns the probes of `--mode=analyze` by name."""
        return {}

    def export(self, variables: Variables) -> dict[str, Variables]:
        """Returns `{file name: variables}` of weight files, written after each task.

        Weights of ViTs become float16.
        """
        return {}


class CachesQueries(abc.ABC):
    """Marks a method whose frozen variables alone determine some outputs of an image.

    The outputs are computed once a run for each test image and are passed to `predict` as `context.queries`.
    """

    @abc.abstractmethod
    def queries(self, frozen: Variables, images: jax.Array) -> dict[str, jax.Array]:
        """Returns `{name: [batch, ...]}`."""


class Generates(abc.ABC):
    """Marks a method for generation.

    `training.generation` evaluates the method's generator and discriminator. Images are float32
    `[batch, size, size, 3]` in [-1, 1].

    Attributes:
      generated: number of images that an evaluation generates.
      generation_batch: number of images that are generated together, a divisor of `generated`.
      components: principal components of the features in which distances are measured; 0: the features themselves.
      has_score: whether `measure` also returns class logits.
      network_name: name of the measuring network.
      sheet_columns: samples of each class in a sheet.
    """

    generated: int
    generation_batch: int
    components: int
    has_score: bool
    network_name: str
    sheet_columns: int

    @property
    def distance_name(self) -> str:
        """Returns the name of the measuring network, with the number of components."""
        return self.network_name + f"_pca{self.components}" * bool(self.components)

    @abc.abstractmethod
    def generate(self, variables: Variables, keys: jax.Array, labels: jax.Array) -> jax.Array:
        """Returns an image of each label.

        keys: a PRNG key of each image, `[batch]`.
        labels: int32 `[batch]`.
        """

    @abc.abstractmethod
    def measure(self, variables: Variables, images: jax.Array, context: Context) -> dict[str, jax.Array]:
        """Applies the measuring network, which is frozen.

        Returns:
          `features` `[batch, dim]`, and `logits` if `has_score`.
        """

    @abc.abstractmethod
    def augmented_scores(self, variables: Variables, images: jax.Array, context: Context) -> jax.Array:
        """Returns the discriminator's scores of augmented images for each class.

        Returns:
          `[batch, classes]`; a score above 0 means a real image.
        """


class HerdsMemory(abc.ABC):
    """Marks a method whose network selects the images of a memory.

    `data.herding` describes the selection. `features` has a layer of the name "features" `[batch, dim]` for the phase's
    `herding_network`.
    """

    @abc.abstractmethod
    def memory_rows(self, mutable: Variables) -> jax.Array:
        """Returns the rows of the memory, int32 `[classes, width]`, -1 for empty places."""

    @abc.abstractmethod
    def update_memory(self, variables: Variables, rows: jax.Array) -> Variables:
        """Returns the variables after new rows were selected."""


def split(variables, selected: Callable[[Path], bool]):
    """Splits variables into two nested dicts.

    Args:
      variables: nested dict.
      selected: path -> whether the leaf is in the first dict.

    Returns:
      The selected leaves, and the others.
    """
    flat = traverse_util.flatten_dict(variables, keep_empty_nodes=True)
    inside = {path: leaf for path, leaf in flat.items() if selected(path)}
    outside = {path: leaf for path, leaf in flat.items() if not selected(path)}
    return traverse_util.unflatten_dict(inside), traverse_util.unflatten_dict(outside)


def cast_frozen_kernels(frozen, dtype: str):
    """Casts the kernels of dense layers and convolutions to `dtype`.

    Kernels are nearly all of the bytes. Norms, positions and running statistics are few and sensitive, so they keep
    their type. The leaves are arrays or shapes.
    """
    if dtype == "float32":
        return frozen

    def cast(path, leaf):
        if path[-1].key != "kernel" or leaf.dtype != np.float32:
            return leaf
        return leaf.update(dtype=np.dtype(dtype)) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(cast, frozen)


def join(*parts):
    """Joins nested dicts into one; later leaves replace earlier ones.

    >>> join({"a": {"x": 1, "y": 2}}, {"a": {"y": 3}})
    {'a': {'x': 1, 'y': 3}}
    """
    flat = {}
    for part in parts:
        flat.update(traverse_util.flatten_dict(part, keep_empty_nodes=True))
    return traverse_util.unflatten_dict(flat)
