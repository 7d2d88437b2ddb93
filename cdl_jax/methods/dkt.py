"""Distributed Knowledge Transfer (DKT): learners that teach each other.

Each learner learns its own stream. "Knowledge transfer in Distributed Continual Learning Scenarios" (Master thesis,
University of Pisa, 2023, and its code) has one or two learners. Here any number learns at the same time, in a loop
within one compiled step, or spread over devices along the mesh's axis "peer". Each has a CL head for the labels of its
task and an ST head that imitates its peers' CL heads on the same images. With w the weight `dkt_losses.kd_weight` and W
the mixing matrix

    loss_i = CE(cl_i, labels) + w student_loss(st_i, sum_j W_ij cl_j)

At an exchange every learner publishes its state. Until the next exchange its peers use this published state, which
passes no gradients on. Teachers may also be finished runs (`dkt.teacher_runs`): a network trained jointly, or a
continual learner after the same task.

Variables: `{"learner_0": ..., ...}`, `"shared"` (a frozen backbone) and `"teachers"` where they exist, and those of
`methods.shared.dkt_exchange`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cdl_jax import optim, plugins
from cdl_jax.losses import Context
from cdl_jax.methods.base import Method, Outcome, Path, Phase, StreamInfo, Update, Variables
from cdl_jax.methods.shared import (
    dkt_learners,
    dkt_losses,
    dkt_options,
    finished_run,
    rehearsal,
    topology,
)
from cdl_jax.methods.shared.dkt_exchange import Exchange
from cdl_jax.methods.shared.dkt_learner_loss import LearnerLoss
from cdl_jax.methods.shared.dkt_learners import Learner, LearnerOutputs
from cdl_jax.methods.shared.dkt_networks import EvaluatedNetworks
from cdl_jax.models import vit
from cdl_jax.models.modules import families
from cdl_jax.models.modules.features import named_features
from cdl_jax.models.peers.parallel import map_peers
from cdl_jax.options import Option, change_defaults

OPTIONS = {
    **dkt_losses.OPTIONS,
    "num_learners": Option(2, "number of learners", minimum=1),
    "stream_order": Option(
        "independent", "class order of each learner, relative to the stream's", choices=topology.ORDERS
    ),
    "stream_seed": Option(0, "seed of independent and shuffled orders"),
    "copy_init": Option(True, "all learners start from the same weights"),
    "classes": Option(
        "all",
        "classes of the cross-entropy's softmax: of the current task, seen so far, or all (the authors), over which "
        "predictions then range as well",
        choices=rehearsal.CLASSES,
    ),
    # A matrix is described in methods/shared/topology.py.
    "topology": Option(
        "full", 'which learner receives from which: "full", "ring", "pairs", "star", "none", or a matrix'
    ),
    "random_peers": Option(
        0, "number of peers to receive from, drawn at each exchange, instead of a topology; 0: none"
    ),
    # With "weights" there is no ST loss.
    "exchange_mode": Option(
        "state",
        "what is exchanged; state: weights, evaluated on the receivers' images; predictions: logits of public "
        "images; weights: a share of them is adopted (gossip)",
        choices=("state", "predictions", "weights"),
    ),
    "exchange_interval": Option(1, "how many `exchange_unit` lie between two exchanges", minimum=1),
    "exchange_unit": Option("steps", "unit of the interval", choices=topology.UNITS),
    "update_order": Option(
        "simultaneous",
        "sequential: in each task one learner after the other (the authors)",
        choices=("simultaneous", "sequential"),
    ),
    "participation": Option(1.0, "probability that a learner takes part in an exchange", maximum=1),
    "joins": Option((), "the task with which each learner begins; empty: the first", item_type=int),
    "leaves": Option((), "the task before which each learner drops out; empty: never", minimum=1, item_type=int),
    "gossip_share": Option(
        0.5, "share of the peers' weights in a learner's new weights, with exchange_mode=\"weights\"", maximum=1
    ),
    "public": Option(
        1000, 'number of training images that all may use without labels, with exchange_mode="predictions"', minimum=1
    ),
    "public_batch": Option(64, "number of public images in each step", minimum=1),
    "teacher_bn": Option(
        "running",
        "batch norm of peers and of finished runs: running statistics, or those of the batch as in training (the "
        "authors)",
        choices=("running", "batch"),
    ),
    "teacher_runs": Option((), "working directories of finished runs that teach all learners", item_type=str),
    "teacher_network": Option("", 'network of those runs; empty: "teacher" where a run has one, else its last'),
    "teacher_checkpoint": Option(
        "same_task", "those networks after the same task, or after their last task", choices=("same_task", "last")
    ),
    # Each learner has its own memory.
    **change_defaults(rehearsal.OPTIONS, replay=2000),
    "cutmix": Option(0.0, "final probability of the ramp; 0: no CutMix", maximum=1),
    "cutmix_ramp": Option(
        "linear",
        "growth of that probability; as_coded: always on from the third epoch of a task (the authors)",
        choices=("linear", "as_coded"),
    ),
    "cutmix_labels": Option(
        "mixed",
        "labels of a mixed image; original: of its first image alone (the authors)",
        choices=("mixed", "original"),
    ),
}


def defaults(network: str = "slim_resnet18", learner: str = "cnn") -> dict:
    """Returns the config sections of this method.

    Args:
      network: name of a convolutional network, or of a ViT for a prompt pool.
      learner: "cnn", or the prompt pool of the learners.

    Returns:
      `{"dkt": options, "learner": options, "network": options}`.

    Raises:
      UserError: unknown network or prompt pool.
    """
    pool = {} if learner == "cnn" else plugins.load_plugin("models.learners", learner).OPTIONS
    section = families.network_options(network, families.CONVOLUTIONAL if learner == "cnn" else (vit,))
    return {
        "dkt": OPTIONS,
        "learner": {"name": Option(learner, "cnn: networks without prompts; or a prompt learner"), **pool},
        "network": section,
    }


@dataclass(frozen=True, eq=False, kw_only=True)
class DKT(Method):
    """Learners that teach each other.

    See `methods.base.Method` for the contract, and `assemble` for the values of its attributes.

    Attributes:
      learner: the kind of all learners.
      names: of the learners.
      streams: for each learner all labels in its class order.
      exchange: between the learners.
      run_teachers: networks of finished runs, which replace the peers as teachers.
      learner_loss: of each learner.
      evaluated: names and logits of the evaluated networks.
      options: the config section `dkt`.
      batch_size: images of the task in a batch of one learner.
      epochs: of each task.
      optimizer: of all learners.
    """

    supports_batch_statistics = True
    bookkeeping = frozenset({"published", "exchange"})

    learner: Learner
    names: tuple[str, ...]
    streams: tuple[tuple[int, ...], ...]
    exchange: Exchange
    run_teachers: tuple[finished_run.RunTeacher, ...]
    learner_loss: LearnerLoss
    evaluated: EvaluatedNetworks
    options: Any
    batch_size: int
    epochs: int
    optimizer: optim.Optimizer
    image_size: int
    networks: tuple[str, ...]
    # Without `field()` the values below would have the defaults of `Method`.
    headline: tuple[str, ...] = field()
    mean_groups: Mapping[str, tuple[str, ...]] = field()
    stream_of: Mapping[str, int] = field()
    loss_classes: str = field()
    predict_over: str = field()
    num_parallel_networks: int = field()
    num_public: int = field()

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """See `Method.phases`; with update_order="sequential" one for each learner."""
        groups = [self.names] if self.options.update_order == "simultaneous" else [(name,) for name in self.names]
        return tuple(phase for group in groups for phase in self._phases(group))

    def _phases(self, group: tuple[str, ...]) -> tuple[Phase, ...]:
        update = Update(
            lambda path: path[0] in group and self.learner.is_trained(path[1]),
            self.optimizer,
            lambda variables, batch, context: self.loss(group, variables, batch, context),
        )
        exchange = Update(lambda path: False, optim.NO_STEP, self.exchange)
        return rehearsal.phases(
            "together" if len(group) > 1 else group[0],
            self.epochs,
            (exchange, update) if self.exchange.enabled else (update,),
            self.options,
            self.batch_size,
            order=self.names.index(group[0]),
            num_public=self.options.public_batch if self.num_public else 0,
        )

    def init(self, key: jax.Array) -> Variables:
        """See `Method.init`."""
        keys = [jax.random.fold_in(key, 0 if self.options.copy_init else i) for i in range(len(self.names))]
        variables = {name: self.learner.init(k) for name, k in zip(self.names, keys, strict=True)}
        if shared := self.learner.init_shared(jax.random.fold_in(key, len(self.names))):
            variables["shared"] = shared
        if self.run_teachers:
            variables["teachers"] = {str(i): teacher.init() for i, teacher in enumerate(self.run_teachers)}
        return variables | self.exchange.init(variables)

    def load_pretrained(self, variables: Variables) -> Variables:
        """See `Method.load_pretrained`; loads the teachers of finished runs as well."""
        loaded = dict(variables)
        if "shared" in variables:
            loaded["shared"] = self.learner.load_pretrained(variables["shared"])
        if self.run_teachers:
            loaded["teachers"] = {str(i): teacher.load_pretrained() for i, teacher in enumerate(self.run_teachers)}
        return loaded

    def is_frozen(self, path: Path) -> bool:
        """See `Method.is_frozen`."""
        return path[0] in ("shared", "teachers")

    def start_task(self, variables: Variables, context: Context) -> Variables:
        """See `Method.start_task`."""
        started = {
            name: self.learner.start_task(variables[name], context, jax.random.fold_in(context.key, i))
            for i, name in enumerate(self.names)
        }
        return {**variables, **started}

    def end_task(self, variables: Variables, context: Context) -> Variables:
        """See `Method.end_task`."""
        return {**variables, **{name: self.learner.end_task(variables[name], context) for name in self.names}}

    def loss(
        self, group: tuple[str, ...], variables: Variables, batch: Mapping[str, Any], context: Context
    ) -> tuple[jax.Array, Outcome]:
        """Computes the sum of the losses of a group of learners; see `Update.loss`.

        No learner's loss depends on the trained weights of another.

        Args:
          group: names of the learners that are updated.
          variables: of the run.
          batch: `images` float32 `[learners, batch, size, size, 3]` and `labels` int32 `[learners, batch]`.
          context: of the step.
        """
        shared = self.exchange.shared_inputs(variables, context)
        peers = []
        for name in group:
            i = self.names.index(name)
            peers.append((variables[name], batch["images"][i], batch["labels"][i], jnp.int32(i)))
        results = map_peers(lambda peer, *replicated: self.learner_loss(*peer, *replicated), peers, shared, context)
        losses, stats, metrics = zip(*results, strict=True)
        named_metrics = {
            f"{name}/{metric}": value
            for name, learner_metrics in zip(group, metrics, strict=True)
            for metric, value in learner_metrics.items()
        }
        new_stats = {name: new for name, new in zip(group, stats, strict=True) if new}
        total = sum(losses)
        return total, Outcome({"loss": total / len(losses), **named_metrics}, variables=new_stats)

    def predict(self, variables: Variables, images: jax.Array, context: Context) -> tuple[dict[str, jax.Array], dict]:
        """See `Method.predict`."""
        return self.evaluated.logits(self._learner_outputs(variables, images, context, False)), {}

    def _learner_outputs(
        self, variables: Variables, images: jax.Array, context: Context, use_batch_statistics: bool
    ) -> dict[str, LearnerOutputs]:
        """Returns the outputs of all learners for the same images, by name."""
        arguments = variables.get("shared"), images, use_batch_statistics, context, context.key
        return {name: self.learner(variables[name], *arguments) for name in self.names}

    def features(self, variables: Variables, images: jax.Array, context: Context) -> dict[str, dict]:
        """See `Method.features`; of learners and of the teachers of finished runs."""
        features = self.evaluated.features(self._learner_outputs(variables, images, context, False))
        for i, run_teacher in enumerate(self.run_teachers):
            teacher = replace(run_teacher, use_batch_statistics=False)
            outputs = teacher.outputs(variables["teachers"][str(i)], images, context)
            features[f"teacher_{i}"] = {**named_features(outputs), "logits": outputs["logits"]}
        return features

    def extra_metrics(
        self, logits: Mapping[str, jax.Array], labels: jax.Array, context: Context
    ) -> dict[str, jax.Array]:
        """See `EvaluatedNetworks.metrics`."""
        return self.evaluated.metrics(logits, labels, self._ranks_of_present_tasks(), context.end)

    def _ranks_of_present_tasks(self):
        """Returns the label ranks of each learner.

        They are `num_classes` for classes of tasks without the learner.
        """
        info, ranks, count = self.learner_loss.info, self.learner_loss.label_ranks, len(self.names)
        joins, leaves = self.options.joins or (0,) * count, self.options.leaves or (info.num_tasks,) * count
        first = np.array([[info.label_ranges[task][0]] for task in joins])
        end = np.array([[info.label_ranges[task - 1][1]] for task in leaves])
        return np.where((ranks >= first) & (ranks < end), ranks, info.num_classes)

    def counters(self, mutable: Variables) -> dict[str, float]:
        """See `Method.counters` and `Exchange.counters`."""
        return self.exchange.counters(mutable)

    def teacher_outputs(
        self,
        network: str,
        variables: Variables,
        images: jax.Array,
        context: Context,
        use_batch_statistics: bool = False,
    ) -> dict[str, jax.Array]:
        """See `Method.teacher_outputs`; heads come with the learner's intermediates."""
        outputs = self._learner_outputs(variables, images, context, use_batch_statistics)
        return self.evaluated.outputs_of(network, outputs)


def build(config: Any, info: StreamInfo) -> DKT:
    """Builds the method.

    Args:
      config: with the sections `dkt`, `learner`, `network`, `augment`, `optim` and `train`.
      info: of the stream.

    Raises:
      UserError: options that do not fit together.
    """
    options = config.dkt
    dkt_options.check(options, info.num_tasks)
    return assemble(
        dkt_learners.build(config, info),
        _find_teachers(config, info),
        options,
        info,
        batch_size=config.train.batch_size,
        epochs=config.train.epochs,
        optimizer=optim.build(config.optim, config.train.epochs),
    )


def assemble(
    learner: Learner,
    run_teachers: tuple[finished_run.RunTeacher, ...],
    options: Any,
    info: StreamInfo,
    *,
    batch_size: int,
    epochs: int,
    optimizer: optim.Optimizer,
) -> DKT:
    """Assembles the method from its parts.

    Args:
      learner: the kind of all learners.
      run_teachers: networks of finished runs, which replace the peers as teachers; () for none.
      options: the config section `dkt`.
      info: of the stream.
      batch_size: images of the task in a batch of one learner.
      epochs: of each task.
      optimizer: of one learner; each learner has its own gradient bound and moments.

    Raises:
      UserError: an invalid topology or stream order.
    """
    names = tuple(f"learner_{i}" for i in range(options.num_learners))
    streams = topology.class_orders(options.stream_order, len(names), info.task_sizes, options.stream_seed)
    exchange = Exchange(learner, names, _mixing_matrix(options, bool(run_teachers)), options, info.num_classes)
    learner_loss = LearnerLoss(
        learner=learner,
        exchange=exchange,
        run_teachers=run_teachers,
        label_ranks=np.argsort(streams, axis=1),
        options=options,
        info=info,
        epochs=epochs,
    )
    evaluated = EvaluatedNetworks(names, learner_loss.trains_st_heads)
    return DKT(
        learner=learner,
        names=names,
        streams=streams,
        exchange=exchange,
        run_teachers=run_teachers,
        learner_loss=learner_loss,
        evaluated=evaluated,
        options=options,
        batch_size=batch_size,
        epochs=epochs,
        optimizer=_separate_for_each_learner(optimizer, names),
        image_size=learner.image_size,
        networks=evaluated.names,
        headline=names,
        mean_groups=evaluated.mean_groups,
        stream_of=evaluated.stream_of,
        loss_classes=options.classes,
        predict_over="all" if options.classes == "all" else "seen",
        num_parallel_networks=len(names) if options.update_order == "simultaneous" else 1,
        num_public=exchange.num_public,
    )


def _find_teachers(config: Any, info: StreamInfo) -> tuple[finished_run.RunTeacher, ...]:
    options = config.dkt
    return tuple(
        finished_run.find_teacher(
            folder,
            options.teacher_network,
            options.teacher_checkpoint,
            info,
            config.augment,
            use_batch_statistics=options.teacher_bn == "batch",
        )
        for folder in options.teacher_runs
    )


def _mixing_matrix(options: Any, has_teachers: bool) -> np.ndarray:
    """Returns the mixing matrix; 0 for a single learner or where finished runs teach."""
    count = options.num_learners
    if options.random_peers:
        matrix = (1 - np.eye(count, dtype=np.float32)) / max(count - 1, 1)
    else:
        matrix = topology.mixing_matrix(options.topology, count)
    return np.zeros_like(matrix) if has_teachers or count == 1 else matrix


def _separate_for_each_learner(optimizer: optim.Optimizer, names: tuple[str, ...]) -> optim.Optimizer:
    """Returns an optimizer with separate gradient bounds and moments per learner."""
    transform = optax.partition({name: optimizer.transform for name in names}, _learner_labels)
    return optim.Optimizer(transform, optimizer.learning_rate)


def _learner_labels(params: Mapping[str, Any]) -> dict[str, Any]:
    """Returns a tree with the learner's name at each leaf, for `optax.partition`."""
    return {name: jax.tree.map(lambda _, name=name: name, leaves) for name, leaves in params.items()}
