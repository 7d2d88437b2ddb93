"""End-to-End Incremental Learning: a network holds on to what it said, remembers typical pictures, and is balanced.

Castro et al. (2018), as the third teacher of "Distributed Knowledge Transfer" has it. On the task's pictures and as
many remembered ones

    L = CE over the classes seen + alpha (distance from what the previous network said of the classes learnt before)

with noise on the gradients. Then the network chooses the pictures of the task's classes that are most like them all
(`data.herding`), and is fine-tuned on equally many pictures of every class, where it holds on to what it has just
learnt of the task's classes. It then chooses once more: these are what later tasks see.

Variables: `{"network": ..., "previous": ..., "memory": {"rows": int32 [classes, width], "steps": int32}}`; `previous`
is a copy of the network as it was when it last chose, `steps` counts those with noise over the whole run.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax import optim, plugins
from cdl_jax.errors import UserError
from cdl_jax.methods import supervised
from cdl_jax.methods.base import HerdsMemory, Method, Outcome, Phase, Replay, StreamInfo, Update
from cdl_jax.methods.shared import dkt_losses
from cdl_jax.models.modules import families
from cdl_jax.models.modules.conv import apply

OPTIONS = {
    **{key: value for key, value in supervised.LEARNING.items() if key != "replay_balance"},
    "classes": "seen",  # what cross-entropy and predictions span: the classifier grows, or has "all" from the start
    "replay": 2000,  # pictures remembered, equally many of each class learnt
    "alpha": 1.0,  # weight of what is held on to
    "temperature": 2.0,
    # What a softmax spans where it is held on to: the "classes", or the pictures of the "batch" (the authors of DKT).
    "soften": "classes",
    "active": "all_seen",  # classes held on to: of all tasks before, or "last": of the one before (those authors)
    # Noise on gradients, noise / (1 + step)^noise_decay at each step of the run; 0: none. It is the noise's standard
    # "deviation" (those authors), or its "variance" (Neelakantan et al., 2015), which is far more noise later on.
    "noise": 0.3,
    "noise_decay": 0.55,
    "noise_is": "deviation",
    "finetune_epochs": 30,  # on the memory alone, with plain SGD and no noise; 0: none
    "finetune_from": 1,  # the first task that ends with it, counted from 0; 3: those authors
    "finetune_rate": 0.01,  # its learning rate
    "finetune_milestones": (10, 20),  # epochs, after each of which the rate is a tenth
    # The pictures of each class in it: what the memory has room for with those "seen" so far, or with "all" of the
    # stream (those authors), so that there are equally many in every task.
    "finetune_share": "seen",
}
_CHOICES = {
    "classes": ("seen", "all"),
    "soften": ("classes", "batch"),
    "active": ("all_seen", "last"),
    "noise_is": ("deviation", "variance"),
    "finetune_share": ("seen", "all"),
}


def defaults(network="resnet32_padded") -> dict:
    """The config sections of this method, for a named network of any family, with random weights."""
    return {"eeil": OPTIONS, "network": {**families.network_options(network), "weights": "random"}}


@dataclass(frozen=True)
class EEIL(Method, HerdsMemory):
    """See `methods.base.Method`. alone: the network and how it learns from labels. finetuning: its optimizer."""

    supports_batch_statistics = True
    bookkeeping = frozenset({"memory"})

    alone: supervised.Supervised
    options: Any
    info: StreamInfo
    finetuning: optim.Optimizer
    networks: tuple[str, ...] = ("network",)

    @property
    def image_size(self):
        return self.alone.image_size

    @property
    def loss_classes(self):
        return self.alone.loss_classes

    @property
    def predict_over(self):
        return self.alone.predict_over

    @property
    def phases(self):
        options, epochs = self.options, self.alone.epochs
        own = lambda path: path[:2] == ("network", "params")  # noqa: E731
        learn = (Update(own, self.alone.optimizer, self.loss),)
        memory = Replay(options.replay, options.replay_batch or self.alone.batch_size, "herding")
        phases = (
            Phase("network", epochs, learn, tasks="first", herding_network="network"),
            Phase("network_replay", epochs, learn, tasks="later", replay=memory, herding_network="network"),
        )
        if not options.finetune_epochs:
            return phases
        each = options.replay // self.info.num_classes if options.finetune_share == "all" else 0
        tune = Phase(
            "balanced",
            options.finetune_epochs,
            (Update(own, self.finetuning, self.finetune_loss),),
            order=1,
            tasks="later",
            since=options.finetune_from,
            replay=Replay(options.replay, 0, "herding", per_class=each),
            balanced=True,
            herding_network="network",
        )
        return (*phases, tune)

    def init(self, key):
        network, classes = self.alone.init(key)["network"], self.info.num_classes
        width = -(-self.options.replay // self.info.task_sizes[0])  # no class ever has more room than after that task
        memory = {"rows": jnp.full((classes, width), -1, jnp.int32), "steps": jnp.zeros((), jnp.int32)}
        return {"network": network, "previous": network, "memory": memory}

    def load_pretrained(self, variables):
        network = self.alone.load_pretrained(variables)["network"]
        return {**variables, "network": network, "previous": network}

    def memory_rows(self, mutable):
        return mutable["memory"]["rows"]

    def update_memory(self, variables, rows):
        """See `methods.base.Method`; what is held on to next is the network that has chosen."""
        # A copy: the steps are given the buffers of both.
        previous = jax.tree.map(jnp.copy, variables["network"])
        return {**variables, "previous": previous, "memory": {**variables["memory"], "rows": rows}}

    def loss(self, variables, batch, context):
        """Cross-entropy, and what is held on to of earlier tasks; in the first task the former alone."""
        active = dkt_losses.active_classes(self.info.classes_of, context.task, self.options.active)
        total, metrics, changed = self._terms(variables, batch, context, active)
        steps = variables["memory"]["steps"]
        noise = self._noise(variables["network"]["params"], steps, jax.random.fold_in(context.key, 3))
        return total + noise, Outcome(metrics, variables={**changed, "memory": {"steps": steps + 1}})

    def finetune_loss(self, variables, batch, context):
        """Cross-entropy, and what is held on to of the task that was learnt just before."""
        total, metrics, changed = self._terms(variables, batch, context, context.current(self.info.num_classes))
        return total, Outcome(metrics, variables=changed)

    def _terms(self, variables, batch, context, active):
        """(loss, metrics, partial variables to be replaced) with the `active` `[classes]` columns held on to."""
        options = self.options
        true, logits, changed = self.alone.learn(variables, batch, context)
        (before, _), _ = apply(self.alone.backbone, variables["previous"], batch["images"], False, context.key)
        term = dkt_losses.lwf_loss if options.soften == "classes" else dkt_losses.eeil_loss
        held = term(logits, before, active, options.temperature)
        total = true + options.alpha * held
        return total, {"loss": total, "class_loss": true, "previous_loss": held}, changed

    def _noise(self, params, step, key):
        """A scalar of value 0 that brings the noise of a step."""
        options = self.options
        if not options.noise:
            return 0.0
        size = dkt_losses.gradient_noise_std(step, options.noise, options.noise_decay)
        deviation = size if options.noise_is == "deviation" else jnp.sqrt(size)
        return dkt_losses.noise_loss(params, key, deviation)

    def predict(self, variables, images, context):
        return self.alone.predict(variables, images, context)

    def extra_metrics(self, logits, labels, context):
        """`{name: [batch]}`, see `methods.base.Method`."""
        return self.alone.extra_metrics(logits, labels, context)

    def features(self, variables, images, context):
        """How the network sees pictures, see `methods.base.Method`."""
        return self.alone.features(variables, images, context)

    def teacher_outputs(self, network, variables, images, context, use_batch_statistics=False):
        """What the network tells as the teacher of another run (see `methods.base.Method`).

        The logits of classes that it has not seen were never trained: they are told as the least of the others.
        """
        told = self.alone.teacher_outputs(network, variables, images, context, use_batch_statistics)
        seen, logits = context.mask(self.options.classes, self.info.num_classes), told["logits"]
        least = jnp.where(seen, logits, jnp.inf).min(axis=-1, keepdims=True)
        return {**told, "logits": jnp.where(seen, logits, least)}

    def export(self, variables):
        """File name -> variables that the run writes when it is finished."""
        return self.alone.export(variables)


def build(config, info: StreamInfo) -> EEIL:
    """The method that `config` describes, for the stream of `info`.

    Raises:
      UserError: options that are out of range or do not fit together.
    """
    options = config.eeil
    for key, known in _CHOICES.items():
        if options[key] not in known:
            raise UserError(f"eeil.{key}={options[key]!r}: {plugins.did_you_mean(options[key], known)}")
    if not options.temperature > 0 or options.alpha < 0:
        raise UserError(f"eeil.temperature={options.temperature}, alpha={options.alpha}: above 0, and not negative")
    if options.active == "last" and options.alpha and 1 in info.task_sizes[:-1] and options.soften == "classes":
        raise UserError(
            f"eeil.active='last' holds on to one class after task {info.task_sizes.index(1)}, and the softmax over "
            "it is 1 whatever the weights; say 'all_seen'"
        )
    for key in ("noise", "noise_decay", "finetune_epochs"):
        if options[key] < 0:
            raise UserError(f"eeil.{key}={options[key]} must not be negative")
    if options.finetune_from < 1:
        raise UserError(
            f"eeil.finetune_from={options.finetune_from}: at least 1, for nothing comes before the first task"
        )
    if options.replay < info.num_classes:
        raise UserError(f"eeil.replay={options.replay}: at least one picture of each of the {info.num_classes} classes")
    plain = {"name": "sgd", "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    rate = {"learning_rate": options.finetune_rate, "schedule": "steps", "milestones": options.finetune_milestones}
    finetuning = optim.build(ConfigDict({**config.optim, **plain, **rate}), options.finetune_epochs)
    return EEIL(supervised.alone("eeil", config, info), options, info, finetuning)
