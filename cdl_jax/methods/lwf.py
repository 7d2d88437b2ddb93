"""Learning without Forgetting: a network preserves its earlier outputs.

Outputs on the images of the new task are preserved. Li and Hoiem (2016), as the baseline and second teacher of
"Distributed Knowledge Transfer":

    L = CE + alpha mean_b KL(softmax(previous / T) || softmax(current / T)), over the classes of earlier tasks

on the batch, replayed images included. Variables: `{"network": ..., "previous": ...}`. `previous` is a copy of the
network at the end of the task before; no step changes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax.losses import Context, temperature_option
from cdl_jax.methods.base import Outcome, StreamInfo, Variables
from cdl_jax.methods.shared import dkt_losses
from cdl_jax.methods.supervised import TRAINING_OPTIONS, Supervised
from cdl_jax.models.modules import families
from cdl_jax.models.modules.conv import apply
from cdl_jax.options import Option, change_defaults

OPTIONS = {
    **change_defaults(TRAINING_OPTIONS, classes="all"),
    "alpha": Option(1.0, "weight of the distillation from the previous network"),
    "temperature": temperature_option(2.0),
    "lwf_active": Option(
        "all_seen",
        "classes of that distillation: of all earlier tasks, or of the last task before (the authors' code)",
        choices=("all_seen", "last"),
    ),
    "previous_bn": Option(
        "running",
        "batch norm of the previous network: running statistics, or statistics of the batch (the authors' code)",
        choices=("running", "batch"),
    ),
}


def defaults(network: str = "slim_resnet18") -> dict[str, Mapping[str, Any]]:
    """Returns the config sections for a named network with random weights.

    The network may be of any family.
    """
    return {"lwf": OPTIONS, "network": families.network_options(network, weights="random")}


@dataclass(frozen=True)
class LwF(Supervised):
    """Adds distillation from the network before the task to `Supervised`."""

    def init(self, key: jax.Array) -> Variables:
        variables = super().init(key)
        return {**variables, "previous": variables["network"]}

    def load_pretrained(self, variables: Variables) -> Variables:
        loaded = super().load_pretrained(variables)
        return {**loaded, "previous": loaded["network"]}

    def end_task(self, variables: Variables, context: Context) -> Variables:
        # A copy, as training steps reuse the buffers of both.
        return {**variables, "previous": jax.tree.map(jnp.copy, variables["network"])}

    def loss(self, variables: Variables, batch: Mapping[str, Any], context: Context) -> tuple[jax.Array, Outcome]:
        """Returns cross-entropy + alpha distillation from the previous network.

        The first task has no distillation.
        """
        options = self.options
        class_loss, logits, new_variables = self.label_loss(variables, batch, context)
        use_batch_statistics = options.previous_bn == "batch"
        key = jax.random.fold_in(context.key, 2)
        (previous_logits, _), _ = apply(
            self.backbone, variables["previous"], batch["images"], use_batch_statistics, key
        )
        active = dkt_losses.active_classes(self.info.classes_of, context.task, options.lwf_active)
        distillation = dkt_losses.lwf_loss(logits, previous_logits, active, options.temperature)
        total = class_loss + options.alpha * distillation
        metrics = {"loss": total, "class_loss": class_loss, "previous_loss": distillation}
        return total, Outcome(metrics, variables=new_variables)


def build(config: ConfigDict, info: StreamInfo) -> LwF:
    """Builds the method from its config.

    Raises:
      UserError: options do not fit together.
    """
    options = config.lwf
    dkt_losses.check_preserved_classes("lwf", "lwf_active", options, info.task_sizes)
    return LwF.from_section("lwf", config, info)
