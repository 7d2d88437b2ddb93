"""What one learner of DKT is: a network with a CL head, which learns from labels, and an ST head, which learns from
others.

A convolutional learner is trained whole and travels whole; of a prompt learner, prompts and heads. Both offer

    init(key) -> own variables
    __call__(own, shared, images, train, context, key) -> Answer
    shared(key) -> variables that all learners have in common and nobody trains, or {}
    trained(part) -> bool, for the parts at the top of the own variables; all of these travel

and what `methods.base.Method` asks of the beginning and the end of a task.
"""

from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from cdl_jax import plugins
from cdl_jax.models import weights
from cdl_jax.models.modules import heads
from cdl_jax.models.modules.conv import apply
from cdl_jax.models.modules.prompted import PromptedNetwork
from cdl_jax.models.modules.two_heads import TwoHeads


@struct.dataclass
class Answer:
    """What a learner says of a batch.

    cl, st: logits `[batch, classes]` of its heads. stats: new running statistics, as partial own variables.
    loss: scalar, what it adds to its own loss. out: intermediates by name.
    """

    cl: jax.Array
    st: jax.Array
    stats: dict = field(default_factory=dict)
    loss: Any = 0.0
    out: dict = field(default_factory=dict)


@dataclass(frozen=True)
class Convolutional:
    """Own variables: {"params", "batch_stats"}, all of them published."""

    module: TwoHeads
    image_size: int

    def init(self, key):
        return self.module.init(key, jnp.zeros((1, self.image_size, self.image_size, 3)))

    def shared(self, key):
        del key
        return {}

    def load(self, shared):
        return shared

    def trained(self, part):
        return part == "params"

    def start_task(self, own, context, key):
        del context, key
        return own

    def end_task(self, own, context):
        del context
        return own

    def __call__(self, own, shared, images, train, context, key):
        del shared, context
        ((cl, st), out), stats = apply(self.module, own, images, train, key)
        return Answer(cl, st, stats, out=out)


@dataclass(frozen=True)
class Prompted:
    """A learner of `models.prompts` around a frozen ViT. Own variables: {"prompts", "head", "state", "student"}."""

    network: PromptedNetwork
    student: nn.Module

    @property
    def image_size(self):
        return self.network.image_size

    def init(self, key):
        dim = self.network.backbone.dim
        own = self.network.init(jax.random.fold_in(key, 0), dim)
        own["student"] = self.student.init(jax.random.fold_in(key, 1), jnp.zeros((1, dim)))["params"]
        return {part: leaves for part, leaves in own.items() if part != "backbone"}

    def shared(self, key):
        return self.network.init(key, self.network.backbone.dim)["backbone"]

    def load(self, shared):
        return weights.load(self.network.weights, shared, "network.weights")

    def trained(self, part):
        return part in ("prompts", "head", "student")

    def start_task(self, own, context, key):
        return self.network.map_prompt_variables(
            own, lambda v: self.network.prompts.start_task(v, context=context, key=key)
        )

    def end_task(self, own, context):
        return self.network.map_prompt_variables(own, lambda v: self.network.prompts.end_task(v, context=context))

    def __call__(self, own, shared, images, train, context, key):
        del key
        variables = {**own, "backbone": shared}
        query = self.network.query(variables, images)
        out = self.network(variables, images, query, context, train)
        tokens = out["prompts"].tokens
        features = out["class_token"] if tokens is None else out["prompt_tokens"].mean(axis=1)
        st = self.student.apply({"params": own["student"]}, features)
        return Answer(out["logits"], st, loss=out["prompts"].loss, out=out)


def build(config, info):
    """The learner that the sections `network` and, of a prompt learner, `learner` describe.

    Raises:
      UserError: options that do not fit together.
    """
    section = config.network
    family = plugins.load_plugin("models", section.family)
    if config.learner.name == "cnn":
        backbone = family.build(section, info.num_classes)
        return Convolutional(TwoHeads(backbone, info.num_classes), section.image_size)
    pool = plugins.load_plugin("models.prompts", config.learner.name)
    prompts = pool.build(
        config.learner, dim=section.dim, key_dim=section.dim, depth=section.depth, num_tasks=info.num_tasks
    )
    head = prompts.head(info.num_classes)
    network = PromptedNetwork(family.build(section), prompts, head, section.image_size, weights.from_section(section))
    return Prompted(network, heads.LinearHead(info.num_classes))
