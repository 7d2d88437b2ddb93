"""End-to-End Incremental Learning: distillation, herding, balanced fine-tuning.

Castro et al. (2018), as the third teacher of "Distributed Knowledge Transfer" ("the authors' code" below is that of
Distributed Knowledge Transfer). A task has three parts:

1. Training on the task's images and as many replayed ones, with noise on the gradients:

       L = CE over the classes seen + alpha distillation from the previous network over the classes of earlier tasks

2. The network selects the images of the task's classes whose features are closest to the class mean (`data.herding`).
   It is then fine-tuned on equally many images of every class. There it is distilled from the network after part 1,
   over the task's classes.
3. The network selects again; later tasks replay the images of this herded memory.

Variables: `{"network": ..., "previous": ..., "memory": {"rows": int32 [classes, width], "steps": int32}}`. `previous`
is a copy of the network at its last selection. `steps` counts the steps with noise over the run.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax import optim
from cdl_jax.errors import UserError
from cdl_jax.losses import Context, fill_with_smallest, temperature_option
from cdl_jax.methods.base import HerdsMemory, Outcome, Phase, Replay, StreamInfo, Update, Variables
from cdl_jax.methods.shared import dkt_losses
from cdl_jax.methods.supervised import TRAINING_OPTIONS, Supervised, is_network_parameter
from cdl_jax.models.modules import families
from cdl_jax.models.modules.conv import apply
from cdl_jax.options import Option

OPTIONS = {
    **{key: value for key, value in TRAINING_OPTIONS.items() if key != "replay_balance"},
    "classes": Option(
        "seen", "classes of cross-entropy and prediction: seen so far, or all from the start", choices=("seen", "all")
    ),
    "replay": Option(2000, "capacity of the memory in images, shared equally among the learned classes"),
    "alpha": Option(1.0, "weight of the distillation from the previous network"),
    "temperature": temperature_option(2.0),
    "softmax_over": Option(
        "classes",
        "axis of the softmax in that distillation: the classes, or the images of the batch (the authors' code)",
        choices=("classes", "batch"),
    ),
    "active": Option(
        "all_seen",
        "classes of that distillation: of all earlier tasks, or of the last task before (the authors' code)",
        choices=("all_seen", "last"),
    ),
    "noise": Option(0.3, "noise on gradients, noise / (1 + step)^noise_decay at each step of the run; 0: no noise"),
    "noise_decay": Option(0.55, "exponent with which the gradient noise decays over the steps"),
    # "variance" is the rule of Neelakantan et al., 2015: far more noise later on.
    "noise_unit": Option(
        "deviation",
        "whether the formula of the noise gives its standard deviation (the authors' code) or its variance",
        choices=("deviation", "variance"),
    ),
    "finetune_epochs": Option(30, "epochs on the memory, with plain SGD and without noise; 0: no fine-tuning"),
    "finetune_start_task": Option(
        1,
        "index of the first task with fine-tuning; the authors' code has 3",
        minimum=1,
        reason="the first task has no memory",
    ),
    "finetune_learning_rate": Option(0.01, "learning rate of fine-tuning", above=0),
    "finetune_milestones": Option((10, 20), "epochs after which that rate is divided by 10"),
    # With "all" it is equal in every task.
    "finetune_share": Option(
        "seen",
        "images of each class in fine-tuning: the capacity divided by the number of classes seen so far, or of all "
        "classes (the authors' code)",
        choices=("seen", "all"),
    ),
}


def defaults(network: str = "resnet32_padded") -> dict[str, Mapping[str, Any]]:
    """Returns the config sections for a named network with random weights.

    The network may be of any family.
    """
    return {"eeil": OPTIONS, "network": families.network_options(network, weights="random")}


@dataclass(frozen=True)
class EEIL(Supervised, HerdsMemory):
    """Adds distillation, gradient noise, herding and fine-tuning to `Supervised`.

    Attributes:
      finetuning: optimizer of fine-tuning.
    """

    bookkeeping = frozenset({"memory"})

    finetuning: optim.Optimizer = field(kw_only=True)

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        options = self.options
        updates = (Update(is_network_parameter, self.optimizer, self.loss),)
        memory = Replay(options.replay, options.replay_batch or self.batch_size, "herding")
        phases = (
            Phase("network", self.epochs, updates, tasks="first", herding_network="network"),
            Phase("network_replay", self.epochs, updates, tasks="later", replay=memory, herding_network="network"),
        )
        if not options.finetune_epochs:
            return phases
        per_class = options.replay // self.info.num_classes if options.finetune_share == "all" else 0
        finetuning = Phase(
            "balanced",
            options.finetune_epochs,
            (Update(is_network_parameter, self.finetuning, self.finetune_loss),),
            order=1,
            tasks="later",
            since=options.finetune_start_task,
            replay=Replay(options.replay, 0, "herding", per_class=per_class),
            balanced=True,
            herding_network="network",
        )
        return (*phases, finetuning)

    def init(self, key: jax.Array) -> Variables:
        network, classes = super().init(key)["network"], self.info.num_classes
        width = -(-self.options.replay // self.info.task_sizes[0])  # a class has most rows after the first task
        memory = {"rows": jnp.full((classes, width), -1, jnp.int32), "steps": jnp.zeros((), jnp.int32)}
        return {"network": network, "previous": network, "memory": memory}

    def load_pretrained(self, variables: Variables) -> Variables:
        loaded = super().load_pretrained(variables)
        return {**loaded, "previous": loaded["network"]}

    def memory_rows(self, mutable: Variables) -> jax.Array:
        return mutable["memory"]["rows"]

    def update_memory(self, variables: Variables, rows: jax.Array) -> Variables:
        # A copy, as training steps reuse the buffers of both.
        previous = jax.tree.map(jnp.copy, variables["network"])
        return {**variables, "previous": previous, "memory": {**variables["memory"], "rows": rows}}

    def loss(self, variables: Variables, batch: Mapping[str, Any], context: Context) -> tuple[jax.Array, Outcome]:
        """Returns cross-entropy + alpha distillation over earlier classes.

        The first task has no distillation.
        """
        active = dkt_losses.active_classes(self.info.classes_of, context.task, self.options.active)
        total, metrics, new_variables = self._loss_and_metrics(variables, batch, context, active)
        steps = variables["memory"]["steps"]
        noise = self._noise_loss(variables["network"]["params"], steps, jax.random.fold_in(context.key, 3))
        return total + noise, Outcome(metrics, variables={**new_variables, "memory": {"steps": steps + 1}})

    def finetune_loss(
        self, variables: Variables, batch: Mapping[str, Any], context: Context
    ) -> tuple[jax.Array, Outcome]:
        """Returns cross-entropy + alpha distillation over the classes of the current task."""
        active = context.current(self.info.num_classes)
        total, metrics, new_variables = self._loss_and_metrics(variables, batch, context, active)
        return total, Outcome(metrics, variables=new_variables)

    def _loss_and_metrics(self, variables, batch, context, active):
        """Returns the loss, its metrics and the new variables.

        The distillation is over the `active` classes.
        """
        options = self.options
        class_loss, logits, new_variables = self.label_loss(variables, batch, context)
        (previous_logits, _), _ = apply(self.backbone, variables["previous"], batch["images"], False, context.key)
        distillation_loss = dkt_losses.lwf_loss if options.softmax_over == "classes" else dkt_losses.eeil_loss
        distillation = distillation_loss(logits, previous_logits, active, options.temperature)
        total = class_loss + options.alpha * distillation
        return total, {"loss": total, "class_loss": class_loss, "previous_loss": distillation}, new_variables

    def _noise_loss(self, params, step, key):
        """Returns a scalar of value 0 whose gradient is the noise of a step."""
        options = self.options
        if not options.noise:
            return 0.0
        size = dkt_losses.gradient_noise_std(step, options.noise, options.noise_decay)
        deviation = size if options.noise_unit == "deviation" else jnp.sqrt(size)
        return dkt_losses.noise_loss(params, key, deviation)

    def teacher_outputs(
        self,
        network: str,
        variables: Variables,
        images: jax.Array,
        context: Context,
        use_batch_statistics: bool = False,
    ) -> dict[str, jax.Array]:
        """Returns the network's outputs, with small logits for unseen classes.

        The logits of unseen classes were never trained. They are set to the smallest logit of the other classes.
        """
        outputs = super().teacher_outputs(network, variables, images, context, use_batch_statistics)
        mask = context.mask(self.options.classes, self.info.num_classes)
        return {**outputs, "logits": fill_with_smallest(outputs["logits"], mask)}


def build(config: ConfigDict, info: StreamInfo) -> EEIL:
    """Builds the method from its config.

    Raises:
      UserError: options do not fit together.
    """
    options = config.eeil
    if options.softmax_over == "classes":
        dkt_losses.check_preserved_classes("eeil", "active", options, info.task_sizes)
    elif options.alpha and options.finetune_epochs and config.train.batch_size == 1:
        raise UserError(
            "eeil.softmax_over='batch' with train.batch_size=1: the softmax over the one image of a batch of "
            "fine-tuning is always 1, so its distillation is constant; set train.batch_size of at least 2, or "
            "eeil.softmax_over='classes'"
        )
    if options.replay < info.num_classes:
        raise UserError(f"eeil.replay={options.replay}: at least one image of each of the {info.num_classes} classes")
    plain_sgd = {"name": "sgd", "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    rate = {
        "learning_rate": options.finetune_learning_rate,
        "schedule": "steps",
        "milestones": options.finetune_milestones,
    }
    finetuning = optim.build(ConfigDict({**config.optim, **plain_sgd, **rate}), options.finetune_epochs)
    return EEIL.from_section("eeil", config, info, finetuning=finetuning)
