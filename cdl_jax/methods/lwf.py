"""Learning without Forgetting: a network holds on to what it said before the task, on the task's own pictures.

Li and Hoiem (2016), as the baseline and second teacher of "Distributed Knowledge Transfer" has it:

    L = CE + alpha mean_b KL(softmax(previous / T) || softmax(now / T)) over the columns of classes learnt before

on the batch with what is remembered. Variables: `{"network": ..., "previous": ...}`; the latter is a copy of the former
at the end of the task before, which no step changes.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from cdl_jax import plugins
from cdl_jax.errors import UserError
from cdl_jax.methods import supervised
from cdl_jax.methods.base import Method, Outcome, StreamInfo
from cdl_jax.methods.shared import dkt_losses
from cdl_jax.models.modules import families
from cdl_jax.models.modules.conv import apply

OPTIONS = {
    **supervised.LEARNING,
    "classes": "all",
    "alpha": 1.0,  # weight of what is held on to
    "temperature": 2.0,
    "lwf_active": "all_seen",  # columns held on to: classes of all tasks before, or "last": of the one before (authors)
    "previous_bn": "running",  # statistics of the previous network: "running", or of the "batch" (authors)
}


def defaults(network="slim_resnet18") -> dict:
    """The config sections of this method, for a named network of any family, with random weights."""
    return {"lwf": OPTIONS, "network": {**families.network_options(network), "weights": "random"}}


@dataclass(frozen=True)
class LwF(Method):
    """See `methods.base.Method`. alone: the network and how it learns from labels."""

    supports_batch_statistics = True

    alone: supervised.Supervised
    options: Any
    info: StreamInfo
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
        return self.alone.phases_of(self.loss)

    def init(self, key):
        network = self.alone.init(key)["network"]
        return {"network": network, "previous": network}

    def load_pretrained(self, variables):
        network = self.alone.load_pretrained(variables)["network"]
        return {"network": network, "previous": network}

    def end_task(self, variables, context):
        # A copy: the steps are given the buffers of both to overwrite.
        return {**variables, "previous": jax.tree.map(jnp.copy, variables["network"])}

    def loss(self, variables, batch, context):
        """Cross-entropy, and the divergence from what the previous network says; in the first task the former alone."""
        options = self.options
        true, logits, changed = self.alone.learn(variables, batch, context)
        use_batch_statistics = options.previous_bn == "batch"
        key = jax.random.fold_in(context.key, 2)
        (before, _), _ = apply(self.alone.backbone, variables["previous"], batch["images"], use_batch_statistics, key)
        active = dkt_losses.active_classes(self.info.classes_of, context.task, options.lwf_active)
        held = dkt_losses.lwf_loss(logits, before, active, options.temperature)
        total = true + options.alpha * held
        return total, Outcome({"loss": total, "class_loss": true, "previous_loss": held}, variables=changed)

    def predict(self, variables, images, context):
        return self.alone.predict(variables, images, context)

    def extra_metrics(self, logits, labels, context):
        """`{name: [batch]}`, see `methods.base.Method`."""
        return self.alone.extra_metrics(logits, labels, context)

    def features(self, variables, images, context):
        """How the network sees pictures, see `methods.base.Method`."""
        return self.alone.features(variables, images, context)

    def teacher_outputs(self, network, variables, images, context, use_batch_statistics=False):
        """What the network tells as the teacher of another run (see `methods.base.Method`)."""
        return self.alone.teacher_outputs(network, variables, images, context, use_batch_statistics)

    def export(self, variables):
        """File name -> variables that the run writes when it is finished."""
        return self.alone.export(variables)


def build(config, info: StreamInfo) -> LwF:
    """The method that `config` describes, for the stream of `info`.

    Raises:
      UserError: options that are out of range or do not fit together.
    """
    options = config.lwf
    for key, known in {"lwf_active": ("all_seen", "last"), "previous_bn": ("running", "batch")}.items():
        if options[key] not in known:
            raise UserError(f"lwf.{key}={options[key]!r}: {plugins.did_you_mean(options[key], known)}")
    if not options.temperature > 0 or options.alpha < 0:
        raise UserError(f"lwf.temperature={options.temperature}, alpha={options.alpha}: above 0, and not negative")
    if options.lwf_active == "last" and options.alpha and 1 in info.task_sizes[:-1]:
        raise UserError(
            f"lwf.lwf_active='last' holds on to one class after task {info.task_sizes.index(1)}, and the softmax over "
            "it is 1 whatever the weights; say 'all_seen'"
        )
    return LwF(supervised.alone("lwf", config, info), options, info)
