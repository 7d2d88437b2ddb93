"""Distributed Knowledge Transfer: learners that teach each other while each learns its own stream.

"Knowledge transfer in Distributed Continual Learning Scenarios" (Master thesis, University of Pisa, 2023, and its
program) has one or two learners; here any number learns at the same time, looped over in one compiled step or spread
over devices along a mesh's axis "peer". Each has a CL head for the labels of its own task and an ST head that imitates
others on the very same pictures; with w the weight of `dkt_losses.kd_weight`

    loss_i = CE(cl_i, labels) + w term(st_i, sum_j W_ij cl_j)

At exchanges every learner publishes; between them all hear what was published last, which passes no gradients. Teachers
may also be finished runs (`dkt.teachers`): a network trained jointly, or a continual learner after the same task.

Variables: `{"learner_0": own, ...}`, `"shared"` (a frozen backbone, or {}), `"teachers"`, and those of
`methods.exchange`.
"""

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cdl_jax import optim, plugins
from cdl_jax.data.transforms import mixing
from cdl_jax.errors import UserError
from cdl_jax.losses import mask_classes
from cdl_jax.methods.base import Method, Outcome, StreamInfo, Update
from cdl_jax.methods.shared import dkt_learners, dkt_losses, finished_run, rehearsal, topology
from cdl_jax.methods.shared.dkt_exchange import Exchange, normalize_weights
from cdl_jax.models import vit
from cdl_jax.models.modules import families
from cdl_jax.models.modules.features import named_features
from cdl_jax.models.peers.parallel import map_peers

OPTIONS = {
    **dkt_losses.OPTIONS,
    "num_learners": 2,
    "stream_order": "independent",  # of each learner's classes: "same", "independent", "shuffled" or "rotated"
    "stream_seed": 0,  # of independent and shuffled orders
    "copy_init": True,  # all learners start from the same weights
    # What the cross-entropy spans: "all" classes (the authors), which predictions then span as well, those "seen" so
    # far, or those of the "current" task.
    "classes": "all",
    "topology": "full",  # who hears whom: "full", "ring", "pairs", "star", "none", or a matrix; see methods/topology.py
    "random_peers": 0,  # hear so many others, drawn anew at each exchange, in place of a topology
    # What travels. "state": weights, evaluated by those who hear them on their own pictures. "predictions": logits of
    # public pictures. "weights": weights, of which each learner takes a share over (gossip), without an ST loss.
    "exchange_mode": "state",
    "exchange_interval": 1,
    "exchange_unit": "steps",  # of the interval: "steps", "epochs" or "tasks"
    "update_order": "simultaneous",  # or "sequential": in each task one learner after the other (the authors)
    "participation": 1.0,  # probability that a learner takes part in an exchange
    "joins": (),  # the task with which each learner begins; (): the first
    "leaves": (),  # the task before which each learner drops out; (): never
    "gossip_share": 0.5,  # of the others' weights, with exchange_mode="weights"
    "public": 1000,  # training pictures that all may see without labels, with exchange_mode="predictions"
    "public_batch": 64,  # of them in each step
    # Statistics of those who are heard, finished runs too: "running", or of the "batch" as in training (the authors).
    "teacher_bn": "running",
    "teachers": (),  # working directories of finished runs that teach all learners
    "teacher_network": "",  # which network of those runs; "": "teacher" where a run has one, else its last
    "teacher_checkpoint": "same_task",  # those networks after the same task, or "last": after their whole stream
    **rehearsal.OPTIONS,  # each learner has a memory of its own
    "replay": 2000,
    "cutmix": 0.0,  # probability that the ramp leads to; 0: no CutMix
    "cutmix_ramp": "linear",  # or "as_coded": from the third epoch of a task on always (the authors)
    "cutmix_labels": "mixed",  # or "original" (the authors)
}


def defaults(network="slim_resnet18", learner="cnn") -> dict:
    """The config sections of this method, for a named network, whole or with the prompts of a learner."""
    pool = {} if learner == "cnn" else plugins.load_plugin("models.prompts", learner).OPTIONS
    section = families.network_options(network, families.CONVOLUTIONAL if learner == "cnn" else (vit,))
    return {"dkt": OPTIONS, "learner": {"name": learner, **pool}, "network": section}


@dataclass(frozen=True, eq=False, kw_only=True)
class DKT(Method):
    """See `methods.base.Method`.

    names: of the learners. streams: see there. matrix: who hears whom.
    """

    supports_batch_statistics = True
    bookkeeping = frozenset({"published", "exchange"})

    learner: Any
    names: tuple[str, ...]
    streams: tuple[tuple[int, ...], ...]
    matrix: np.ndarray
    given_teachers: tuple[finished_run.RunTeacher, ...]
    options: Any
    info: StreamInfo
    batch_size: int
    epochs: int
    optimizer: optim.Optimizer

    @property
    def heads(self):
        return ("", "_st", "_both") if self._taught else ("",)

    @property
    def networks(self):
        together = ("ensemble",) if len(self.names) > 1 else ()
        return (*(name + head for name in self.names for head in self.heads), *together)

    @property
    def mean_groups(self):
        return {f"mean{head}": tuple(name + head for name in self.names) for head in self.heads}

    @property
    def headline(self):
        return self.names

    @property
    def stream_of(self):
        return {name + head: i for i, name in enumerate(self.names) for head in ("", "_st", "_both")}

    @property
    def loss_classes(self):
        return self.options.classes

    @property
    def predict_over(self):
        return "all" if self.options.classes == "all" else "seen"

    @property
    def num_parallel_networks(self):
        return len(self.names) if self.options.update_order == "simultaneous" else 1

    @property
    def image_size(self):
        return self.learner.image_size

    @cached_property
    def exchange(self):
        return Exchange(self.learner, self.names, self.matrix, self.options, self.info.num_classes)

    @property
    def num_public(self):
        return self.exchange.num_public

    @property
    def _taught(self):
        """Whether ST heads learn anything."""
        peers = self.options.exchange_mode != "weights" and self.exchange.enabled
        return self.options.st_loss != "none" and (bool(self.given_teachers) or peers)

    @property
    def phases(self):
        groups = [self.names] if self.options.update_order == "simultaneous" else [(name,) for name in self.names]
        return tuple(phase for group in groups for phase in self._phases(group))

    def _phases(self, group):
        learn = Update(
            lambda path: path[0] in group and self.learner.is_trained(path[1]),
            self.optimizer,
            lambda variables, batch, context: self.loss(group, variables, batch, context),
        )
        exchanged = Update(lambda path: False, optim.Optimizer(optax.identity(), lambda progress: 0.0), self.exchange)
        updates = (exchanged, learn) if self.exchange.enabled else (learn,)
        name = "together" if len(group) > 1 else group[0]
        public = self.options.public_batch if self.num_public else 0
        order = self.names.index(group[0])
        sizes = {"order": order, "num_public": public}
        return rehearsal.phases(name, self.epochs, updates, self.options, self.batch_size, **sizes)

    def init(self, key):
        keys = [jax.random.fold_in(key, 0 if self.options.copy_init else i) for i in range(len(self.names))]
        variables = {name: self.learner.init(k) for name, k in zip(self.names, keys, strict=True)}
        if shared := self.learner.init_shared(jax.random.fold_in(key, len(self.names))):
            variables["shared"] = shared
        if self.given_teachers:
            variables["teachers"] = {str(i): teacher.init() for i, teacher in enumerate(self.given_teachers)}
        return variables | self.exchange.init(variables)

    def load_pretrained(self, variables):
        loaded = dict(variables)
        if "shared" in variables:
            loaded["shared"] = self.learner.load_pretrained(variables["shared"])
        if self.given_teachers:
            loaded["teachers"] = {str(i): teacher.load() for i, teacher in enumerate(self.given_teachers)}
        return loaded

    def is_frozen(self, path):
        return path[0] in ("shared", "teachers")

    def start_task(self, variables, context):
        begun = {n: self.learner.start_task(variables[n], context, jax.random.fold_in(context.key, i))
                 for i, n in enumerate(self.names)}  # fmt: skip
        return {**variables, **begun}

    def end_task(self, variables, context):
        return {**variables, **{name: self.learner.end_task(variables[name], context) for name in self.names}}

    def loss(self, group, variables, batch, context):
        """The sum of the learners' losses: none of them depends on another's trained weights."""
        shared = self.exchange.shared_inputs(variables, context)
        indices = [self.names.index(name) for name in group]
        peers = [
            (variables[name], batch["images"][i], batch["labels"][i], jnp.int32(i))
            for name, i in zip(group, indices, strict=True)
        ]
        results = map_peers(lambda peer, *replicated: self._learner_loss(*peer, *replicated), peers, shared, context)
        losses, stats, metrics = zip(*results, strict=True)
        named = {
            f"{name}/{what}": value for name, own in zip(group, metrics, strict=True) for what, value in own.items()
        }
        changed = {name: new for name, new in zip(group, stats, strict=True) if new}
        total = sum(losses)
        return total, Outcome({"loss": total / len(losses), **named}, variables=changed)

    def _learner_loss(self, own, images, labels, number, share, context):
        """(loss, new statistics, metrics) of the learner of a number, which may be traced."""
        options = self.options
        key = jax.random.fold_in(context.key, 8 + number)
        others, part = labels, 1.0
        if options.cutmix:
            probability = mixing.cutmix_probability(options.cutmix_ramp, options.cutmix, context.epoch, self.epochs)
            images, others, part = mixing.cutmix(images, labels, jax.random.fold_in(key, 0), probability)
        answer = self.learner(own, share.get("shared"), images, True, context, jax.random.fold_in(key, 1))
        allowed = self._allowed(number, context)
        of = lambda y: dkt_losses.class_loss(mask_classes(answer.cl_logits, allowed), y, options.reduction)  # noqa: E731
        true = of(labels)
        if options.cutmix and options.cutmix_labels == "mixed":
            true = part * true + (1 - part) * of(others)
        total, metrics = true + answer.extra_loss, {"class_loss": true}
        if self._taught:
            st, target, known = self._lesson(own, answer, images, number, share, context, key)
            term = dkt_losses.student_loss(st, target, options.st_loss, options.temperature, options.reduction)
            weight = dkt_losses.kd_weight(options, context.task, self.info.num_tasks) * known
            # Of an unknown target the term is finite and weighs nothing.
            total, metrics = total + weight * term, {**metrics, "student_loss": term, "kd_weight": weight}
        here = share["present"][number]
        stats = jax.tree.map(
            lambda new, old: jnp.where(here, new, old), answer.stats, {k: own[k] for k in answer.stats}
        )
        right = (mask_classes(answer.cl_logits, allowed).argmax(axis=-1) == labels).mean()
        return jnp.where(here, total, 0.0), stats, {**metrics, "accuracy": 100 * right}

    def _allowed(self, number, context):
        """bool `[classes]`: what the cross-entropy of a learner spans."""
        rank = jnp.asarray(np.argsort(self.streams, axis=1))[number]
        return context.mask(self.options.classes, self.info.num_classes)[rank]

    def _lesson(self, own, answer, images, number, share, context, key):
        """(ST logits, their target, whether anybody has said anything yet)."""
        if not self.num_public:
            return answer.st_logits, *self.target(images, number, share, context)
        published, weights = share["published"], share["matrix"][number]
        targets = dkt_losses.student_target(published["logits"], self.options.st_loss, self.options.temperature)
        target = jnp.tensordot(normalize_weights(weights), targets, axes=1)
        key = jax.random.fold_in(key, 2)
        st = self.learner(own, share.get("shared"), published["images"], True, context, key).st_logits
        return st, target, weights.any()

    def target(self, images, number, share, context):
        """What the ST head of a learner should say of `images`, `[batch, classes]`, and whether anybody has told it."""
        kind, temperature = self.options.st_loss, self.options.temperature
        if self.given_teachers:
            given = [t.outputs(share["teachers"][str(i)], images, context) for i, t in enumerate(self.given_teachers)]
            return dkt_losses.student_target(finished_run.average_outputs(given)["logits"], kind, temperature), True
        weights = share["matrix"][number]
        most = self.options.random_peers or int((self.matrix > 0).sum(axis=1).max())
        target = 0.0
        for weight, peer in zip(*jax.lax.top_k(normalize_weights(weights), most), strict=True):
            theirs = jax.tree.map(lambda x, peer=peer: x[peer], share["published"])
            answer = self.exchange.peer_logits(theirs, share, images, context)
            target += weight * dkt_losses.student_target(answer, kind, temperature)
        return target, weights.any()

    def predict(self, variables, images, context):
        return self._logits(self._answers(variables, images, context, False)), {}

    def _answers(self, variables, images, context, use_batch_statistics):
        shared = variables.get("shared")
        arguments = shared, images, use_batch_statistics, context, context.key
        return {name: self.learner(variables[name], *arguments) for name in self.names}

    def _logits(self, answers):
        """Network -> logits, where there is more than one head or learner those of their mean probabilities too."""
        logits, soft = {}, []
        for name, answer in answers.items():
            soft.append(jax.nn.softmax(answer.cl_logits))
            logits[name] = answer.cl_logits
            if self._taught:
                logits[f"{name}_st"] = answer.st_logits
                logits[f"{name}_both"] = jnp.log(soft[-1] + jax.nn.softmax(answer.st_logits)) - jnp.log(2.0)
        if len(self.names) > 1:
            logits["ensemble"] = jnp.log(sum(soft) / len(soft))
        return logits

    def features(self, variables, images, context):
        """How learners, and the finished runs that teach them, see pictures (see `methods.base.Method`)."""
        seen = {}
        for name, answer in self._answers(variables, images, context, False).items():
            seen[name] = {
                **named_features(answer.intermediates),
                "cl": answer.cl_logits,
                **({"st": answer.st_logits} if self._taught else {}),
            }
        for i, teacher in enumerate(self.given_teachers):
            told = replace(teacher, use_batch_statistics=False).outputs(variables["teachers"][str(i)], images, context)
            seen[f"teacher_{i}"] = {**named_features(told), "logits": told["logits"]}
        return seen

    def extra_metrics(self, logits, labels, context):
        """Accuracy over all classes, learnt or not, on those that a learner has not met but another has, for as many
        test pictures of each class; and what the authors' own test counts.
        """
        values = {}
        for head in self.heads if len(self.names) > 1 else ():
            right = [100.0 * (logits[name + head].argmax(axis=-1) == labels) for name in self.names]
            values[f"mean{head}/accuracy_on_others_classes"] = self._on_others(right, labels, context)
        for name in self.names:
            values[f"{name}/rounded_accuracy"] = 100 * dkt_losses.rounded_correct(logits[name], labels)
        return values

    def _on_others(self, right, labels, context):
        met = jnp.asarray(np.argsort(self.streams, axis=1)) < context.end
        wanted = jnp.any(met, axis=0) & ~met
        share = wanted.mean(axis=1)
        own = [r * w[labels] / jnp.where(s > 0, s, 1.0) for r, w, s in zip(right, wanted, share, strict=True)]
        return sum(own) / jnp.maximum((share > 0).sum(), 1)

    def counters(self, mutable):
        return self.exchange.counters(mutable)

    def teacher_outputs(self, network, variables, images, context, use_batch_statistics=False):
        """What a learner tells as the teacher of another run (see `methods.base.Method`)."""
        answers = self._answers(variables, images, context, use_batch_statistics)
        name = network.split("_st")[0].split("_both")[0]
        return {**(answers[name].intermediates if name in answers else {}), "logits": self._logits(answers)[network]}


def build(config, info: StreamInfo) -> DKT:
    """The method that `config` describes, for the stream of `info`.

    Raises:
      UserError: options that are out of range or do not fit together.
    """
    options = config.dkt
    _check(options)
    count = options.num_learners
    learner = dkt_learners.build(config, info)
    given = tuple(
        finished_run.find_teacher(
            folder, options.teacher_network, options.teacher_checkpoint, info, config.augment,
            use_batch_statistics=options.teacher_bn == "batch",
        )
        for folder in options.teachers
    )  # fmt: skip
    if options.random_peers:
        matrix = (1 - np.eye(count, dtype=np.float32)) / max(count - 1, 1)
    else:
        matrix = topology.mixing_matrix(options.topology, count)
    if given or count == 1:
        matrix = np.zeros_like(matrix)
    names_of = tuple(f"learner_{i}" for i in range(count))
    each = optim.build(config.optim, config.train.epochs)
    # Bounds on gradients and moments are each learner's own.
    transform = optax.partition({name: each.transform for name in names_of}, _owners)
    return DKT(
        learner=learner,
        names=names_of,
        streams=topology.class_orders(options.stream_order, count, info.task_sizes, options.stream_seed),
        matrix=matrix,
        given_teachers=given,
        options=options,
        info=info,
        batch_size=config.train.batch_size,
        epochs=config.train.epochs,
        optimizer=optim.Optimizer(transform, each.learning_rate),
    )


def _owners(params):
    return {name: jax.tree.map(lambda _, name=name: name, own) for name, own in params.items()}


def _check(options):
    """Refuses options that are out of range or do not fit together."""
    dkt_losses.check("dkt", options)
    rehearsal.check("dkt", options)
    choices = {
        "stream_order": topology.ORDERS,
        "exchange_mode": ("state", "predictions", "weights"),
        "exchange_unit": topology.UNITS,
        "update_order": ("simultaneous", "sequential"),
        "teacher_bn": ("running", "batch"),
        "teacher_checkpoint": ("same_task", "last"),
        "cutmix_ramp": ("linear", "as_coded"),
        "cutmix_labels": ("mixed", "original"),
    }
    for key, known in choices.items():
        if options[key] not in known:
            raise UserError(f"dkt.{key}={options[key]!r}: {plugins.did_you_mean(options[key], known)}")
    count = options.num_learners
    least = {"num_learners": 1, "exchange_interval": 1, "public": 1, "public_batch": 1}
    for key, minimum in {**least, "random_peers": 0, "stream_seed": 0}.items():
        if options[key] < minimum:
            raise UserError(f"dkt.{key}={options[key]} must be at least {minimum}")
    if options.random_peers >= count and options.random_peers:
        raise UserError(f"dkt.random_peers={options.random_peers}: each of {count} learners has {count - 1} others")
    for key in ("participation", "gossip_share"):
        if not 0 <= options[key] <= 1:
            raise UserError(f"dkt.{key}={options[key]} must lie between 0 and 1")
    for key in ("joins", "leaves"):
        if options[key] and len(options[key]) != count:
            raise UserError(f"dkt.{key}={tuple(options[key])}: give {count} tasks, one for each learner")
    if options.public_batch > options.public:
        raise UserError(f"dkt.public_batch={options.public_batch} is more than the {options.public} public pictures")
    if options.teachers and options.exchange_mode != "state":
        raise UserError(
            f"dkt.exchange_mode={options.exchange_mode!r} has no meaning with dkt.teachers: leave it at 'state'"
        )
