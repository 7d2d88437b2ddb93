"""The contract between a method and the trainer.

A method's file offers `defaults(**choices) -> dict`, its config sections, and `build(config, info) -> Method`.

Variables are a nested dict `{network: {part: arrays}}`; a *path* is the tuple of keys that leads to a leaf. All that
a method does to variables is a pure function that can be compiled; tasks differ only in the arrays of the `Context`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import jax
import numpy as np
from flax import traverse_util

from cdl_jax.losses import Context
from cdl_jax.optim import Optimizer

Variables = dict[str, Any]
Path = tuple[str, ...]


@dataclass(frozen=True)
class StreamInfo:
    """What a method may know of the stream: `num_classes` in all, the number of classes of each task, their names (none
    where each seed has an order of its own), and how many pictures there are to train on."""

    num_classes: int
    task_sizes: tuple[int, ...]
    class_names: tuple[str, ...] = ()
    train_images: int = 0

    @property
    def num_tasks(self) -> int:
        return len(self.task_sizes)

    @property
    def classes_of(self) -> np.ndarray:
        """bool `[tasks, classes]`: which classes each task has, where they are numbered in the stream's order."""
        tasks = np.arange(self.num_tasks)
        return np.repeat(tasks, self.task_sizes) == tasks[:, None]


@dataclass(frozen=True)
class Outcome:
    """What a loss hands back beside its value.

    metrics: name -> scalar, logged.
    variables: partial variables to be replaced after the update (running statistics, say).
    batch: entries that later updates of the same step find in their batch.
    """

    metrics: Mapping[str, jax.Array]
    variables: Variables = field(default_factory=dict)
    batch: Mapping[str, Any] = field(default_factory=dict)


jax.tree_util.register_dataclass(Outcome, data_fields=["metrics", "variables", "batch"], meta_fields=[])


@dataclass(frozen=True)
class Update:
    """One optimizer step on `loss(variables, batch, context) -> (scalar, Outcome)`, over the `trainable` paths.

    batch: `images` float32 `[batch, size, size, 3]`, `labels` int32 `[batch]`, `rows` int32 `[batch]` (which of the
      stream's training pictures these are), and what earlier updates of the step added.
    """

    trainable: Callable[[Path], bool]
    optimizer: Optimizer
    loss: Callable[[Variables, Mapping[str, Any], Context], tuple[jax.Array, Outcome]]


@dataclass(frozen=True)
class Replay:
    """Pictures of earlier tasks that join every batch.

    capacity: how many are remembered in all. batch: how many join a batch, behind the task's own pictures.
    balance: what the capacity is shared out among, "experience" (the tasks learnt) or "class" (see `data.replay`); or
      "herding": classes as well, and a network has chosen the pictures (see `Method.remember`).
    per_class: of a herded memory, so many of each class in place of a share of the capacity; 0: the share.
    """

    capacity: int
    batch: int
    balance: str = "experience"
    per_class: int = 0


@dataclass(frozen=True)
class Phase:
    """`epochs` passes over a task's data; each batch goes through `updates` in order, inside one compiled step.

    Phases with the same `order` see the same batches with the same augmentation. A `plain` phase sees every picture
    once an epoch, in order and as it would be tested; its last batch is filled up, as `context.weight` tells.

    tasks: which tasks go through it: "all", the "first" alone, or all "later" ones. since: the first of these.
    replay: what is remembered; only of a phase for later tasks, for at the first there is nothing to remember.
    balanced: its batches are of a herded memory alone, in which the task's own classes then are as the others.
    herds: network by whose features the memory of the task's classes is chosen once the phase is over; "": by none.
    public: how many pictures of the method's `public` ones each step brings as `batch["public"]`.
    constants: whether each step brings as `batch["constants"]` what the method's `constants` tells of its pictures;
      phases with the same `order` ask that once, as far as there is room to keep it.
    """

    name: str
    epochs: int
    updates: tuple[Update, ...]
    order: int = 0
    plain: bool = False
    tasks: str = "all"
    replay: Replay | None = None
    public: int = 0
    since: int = 0
    balanced: bool = False
    herds: str = ""
    constants: bool = False

    def epochs_of(self, task: int) -> int:
        """Passes over the data of the task of this index."""
        skipped = {"all": False, "first": task > 0, "later": task == 0}[self.tasks]
        return 0 if skipped or task < self.since else self.epochs


@dataclass(frozen=True)
class Probe:
    """A prediction with a part of the method changed, for a look at what that part does (`--mode=analyze`).

    predict: `(variables, images, context) -> {network: logits [batch, classes]}`; where a number is swept, with
      `str(value)` in place of the network.
    values: of the number that is swept, in order; none where nothing is. usual: the value with which the method itself
      predicts, one of them. network: whose prediction a sweep changes.
    """

    predict: Callable[[Variables, jax.Array, Context], dict]
    values: tuple[float, ...] = ()
    usual: float | None = None
    network: str = ""


class Method(Protocol):
    """How networks learn a stream.

    networks: names of those that are evaluated.
    phases: what each task goes through. Fixed for the run, so each is compiled once.
    rounds: how often a task goes round its phases; each time a phase does this share of its epochs, its optimizers'
      states and its schedules going on where they stopped.
    image_size: side of the square pictures that the networks take.
    given: the networks among those evaluated that this run does not train.
    pairs: (teacher, student) of those evaluated: evaluation tells how alike they predict.
    spreadable: how many whole networks learn together, over which a mesh's axis "peer" may be laid.
    streams: where several learners have a stream each, for every learner the labels in the order in which it meets
      them. The batch of a step then has an axis of learners in front of that of pictures. Else empty.
    follows: network -> the index in `streams` of the one by whose tasks it is evaluated; others follow the run's.
    spans: the classes of the softmax of the labels' loss: "current" (of a method that does not say), "seen", "all", or
      "" where there is no such softmax.
    predict_over: the classes that predictions may name, those "seen" so far, or "all".
    public: how many training pictures, drawn for the whole run, all learners see, without labels.
    headline: networks whose mean accuracy chooses the best epoch; the last of `networks` where there is no such name.

    Beside what follows a method may offer `outputs(network, variables, images, context) -> dict`: what a network tells
    as the teacher of another run, `logits` and what else has a name, and with a parameter `of_batch` as it does in
    training, where the batch's statistics normalise; `measures(logits, labels, context) -> {name: [batch]}`: what
    evaluation averages over pictures, from the logits of `predict`; `constants(frozen, images) -> {name: [batch,
    ...]}`: what the frozen variables alone tell of pictures, asked once a run for each test picture and handed to
    `predict` as `context.constants`, in phases that say so for each batch as well, of which `kept_mb` tells how much is
    kept at most, in 2**20 bytes; `counters(live) -> {name: number}`: what it has counted until the end of a task;
    `probes() -> {name: Probe}`; and `features(variables, images, context) -> {network: {layer: [batch, ...]}}`: how its
    networks see pictures that are tested.

    One with a herded memory has its rows in `variables["memory"]["rows"]` (see `data.herding`), a layer of the name
    "features" `[batch, dim]`, and `remember(variables, rows) -> variables`: what changes when new rows were chosen.
    """

    networks: tuple[str, ...]
    phases: tuple[Phase, ...]
    image_size: int
    rounds: int = 1
    given: tuple[str, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    streams: tuple[tuple[int, ...], ...] = ()
    spans: str = "current"
    predict_over: str = "seen"
    public: int = 0

    def init(self, key: jax.Array) -> Variables:
        """Fresh variables, with random weights everywhere."""

    def load(self, variables: Variables) -> Variables:
        """`variables` (or their shapes) with pretrained weights in place of those that the config names files for."""

    def frozen(self, path: Path) -> bool:
        """Whether a leaf never changes in the whole run; such leaves are stored once."""

    def start_task(self, variables: Variables, context: Context) -> Variables:
        """What changes before the task of `context` is learnt."""

    def end_task(self, variables: Variables, context: Context) -> Variables:
        """What changes once it has been learnt, before it is evaluated."""

    def predict(self, variables: Variables, images: jax.Array, context: Context) -> tuple[dict, dict]:
        """`{network: logits [batch, classes]}` and `{network: {name: [batch, n]}}`, to be summed over pictures."""


def split(variables, chosen):
    """`variables` as two nested dicts: the leaves whose path is `chosen`, and the others."""
    flat = traverse_util.flatten_dict(variables, keep_empty_nodes=True)
    inside = {path: leaf for path, leaf in flat.items() if chosen(path)}
    outside = {path: leaf for path, leaf in flat.items() if not chosen(path)}
    return traverse_util.unflatten_dict(inside), traverse_util.unflatten_dict(outside)


def stored(frozen, dtype: str):
    """Frozen variables, arrays or shapes, with the kernels of dense layers and convolutions in `dtype`.

    These are nearly all of the bytes; norms, positions and running statistics, which are few and count for more, stay
    as they are.
    """
    if dtype == "float32":
        return frozen

    def as_stored(path, leaf):
        if path[-1].key != "kernel" or leaf.dtype != np.float32:
            return leaf
        return leaf.update(dtype=np.dtype(dtype)) if isinstance(leaf, jax.ShapeDtypeStruct) else leaf.astype(dtype)

    return jax.tree_util.tree_map_with_path(as_stored, frozen)


def join(*parts):
    """One nested dict of several; later leaves replace earlier ones."""
    flat = {}
    for part in parts:
        flat.update(traverse_util.flatten_dict(part, keep_empty_nodes=True))
    return traverse_util.unflatten_dict(flat)
