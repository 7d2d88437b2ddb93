"""Learners of DKT: networks with two heads.

The CL head is trained on labels. The ST head imitates other learners or teachers.
"""

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from cdl_jax import plugins
from cdl_jax.errors import UserError
from cdl_jax.losses import Context
from cdl_jax.methods.base import StreamInfo, Variables
from cdl_jax.models import weights
from cdl_jax.models.learners import base
from cdl_jax.models.modules import heads, prompted
from cdl_jax.models.modules.conv import apply
from cdl_jax.models.modules.two_heads import TwoHeads


@struct.dataclass
class LearnerOutputs:
    """Outputs of a learner for one batch.

    Attributes:
      cl_logits: float32 `[batch, classes]` of the CL head.
      st_logits: float32 `[batch, classes]` of the ST head.
      stats: new running statistics, as partial variables.
      extra_loss: scalar, added to the learner's loss; default 0.
      intermediates: other outputs by name.
    """

    cl_logits: jax.Array
    st_logits: jax.Array
    stats: Variables = field(default_factory=dict)
    extra_loss: jax.Array | float = 0.0
    intermediates: Mapping[str, Any] = field(default_factory=dict)


class Learner(abc.ABC):
    """One kind of learner; all learners of a run are of the same kind.

    `variables` are those of one learner. `shared` are frozen variables that all learners of the run share.

    Attributes:
      image_size: side of the square input images, in pixels.
    """

    image_size: int

    @abc.abstractmethod
    def init(self, key: jax.Array) -> Variables:
        """Draws the variables of one learner. All of them are published at exchanges."""

    @abc.abstractmethod
    def is_trained(self, part: str) -> bool:
        """Returns whether the optimizer updates a top-level part of a learner's variables."""

    @abc.abstractmethod
    def __call__(
        self,
        variables: Mapping[str, Any],
        shared: Mapping[str, Any] | None,
        images: jax.Array,
        train: bool,
        context: Context,
        key: jax.Array,
    ) -> LearnerOutputs:
        """Runs the learner on a batch.

        Args:
          variables: of the learner.
          shared: see `init_shared`; None for {}.
          images: float32 `[batch, image_size, image_size, 3]`.
          train: whether batch norms use the statistics of the batch, and prompt pools are in training mode.
          context: of the step.
          key: PRNG key of dropout.

        Returns:
          The outputs of both heads.
        """

    def init_shared(self, key: jax.Array) -> Variables:
        """Draws the frozen variables that all learners share; default {}."""
        del key
        return {}

    def load_pretrained(self, shared: Variables) -> Variables:
        """Returns the shared variables with pretrained weights; default: unchanged."""
        return shared

    def start_task(self, variables: Variables, context: Context, key: jax.Array) -> Variables:
        """Returns the learner's variables at the start of a task; default: unchanged."""
        del context, key
        return variables

    def end_task(self, variables: Variables, context: Context) -> Variables:
        """Returns the learner's variables at the end of a task; default: unchanged."""
        del context
        return variables


@dataclass(frozen=True)
class ConvolutionalLearner(Learner):
    """A convolutional network with two heads, trained and published in full.

    Variables: `{"params", "batch_stats"}`.
    """

    module: TwoHeads
    image_size: int

    def init(self, key: jax.Array) -> Variables:
        """See `Learner.init`."""
        return self.module.init(key, jnp.zeros((1, self.image_size, self.image_size, 3)))

    def is_trained(self, part: str) -> bool:
        """See `Learner.is_trained`."""
        return part == "params"

    def __call__(
        self,
        variables: Mapping[str, Any],
        shared: Mapping[str, Any] | None,
        images: jax.Array,
        train: bool,
        context: Context,
        key: jax.Array,
    ) -> LearnerOutputs:
        """See `Learner.__call__`."""
        del shared, context
        ((cl_logits, st_logits), intermediates), stats = apply(self.module, variables, images, train, key)
        return LearnerOutputs(cl_logits, st_logits, stats, intermediates=intermediates)


@dataclass(frozen=True)
class PromptedLearner(Learner):
    """Prompts and heads around a frozen ViT that all learners share.

    Prompts and heads are published.

    Variables: `{"prompts", "head", "state", "student"}`, where `student` is the ST head.
    """

    network: prompted.PromptedNetwork
    st_head: nn.Module

    @property
    def image_size(self) -> int:
        """Side of the square input images, in pixels."""
        return self.network.image_size

    def init(self, key: jax.Array) -> Variables:
        """See `Learner.init`."""
        dim = self.network.backbone.dim
        variables = self.network.init(jax.random.fold_in(key, 0), dim)
        variables["student"] = self.st_head.init(jax.random.fold_in(key, 1), jnp.zeros((1, dim)))["params"]
        return {part: leaves for part, leaves in variables.items() if part != "backbone"}

    def init_shared(self, key: jax.Array) -> Variables:
        """Draws the backbone."""
        return self.network.init(key, self.network.backbone.dim)["backbone"]

    def load_pretrained(self, shared: Variables) -> Variables:
        """Loads the backbone's weights from the file that `network.weights` names."""
        return weights.load(self.network.weights, shared, "network.weights")

    def is_trained(self, part: str) -> bool:
        """See `Learner.is_trained`."""
        return part in ("prompts", "head", "student")

    def start_task(self, variables: Variables, context: Context, key: jax.Array) -> Variables:
        """Starts the task in the prompt pool."""
        return self.network.start_task(variables, context, key)

    def end_task(self, variables: Variables, context: Context) -> Variables:
        """Ends the task in the prompt pool."""
        return self.network.end_task(variables, context)

    def __call__(
        self,
        variables: Mapping[str, Any],
        shared: Mapping[str, Any] | None,
        images: jax.Array,
        train: bool,
        context: Context,
        key: jax.Array,
    ) -> LearnerOutputs:
        """See `Learner.__call__`; the ST head reads the same features as the CL head."""
        del key
        network_variables = {**variables, "backbone": shared}
        query = self.network.query(network_variables, images)
        out = self.network(network_variables, images, query, context, train)
        tokens = out["prompts"].tokens
        features = out["class_token"] if tokens is None else out["prompt_tokens"].mean(axis=1)
        st_logits = self.st_head.apply({"params": variables["student"]}, features)
        return LearnerOutputs(out["logits"], st_logits, extra_loss=out["prompts"].loss, intermediates=out)


def build(config: Any, info: StreamInfo) -> Learner:
    """Builds the learner that a config describes.

    Args:
      config: with the sections `network` and `learner`; `learner.name` is "cnn" or a prompt pool.
      info: of the stream.

    Raises:
      UserError: options that do not fit together.
    """
    section = config.network
    if config.learner.name == "cnn":
        family = plugins.load_plugin("models", section.family)
        backbone = family.build(section, info.num_classes)
        return ConvolutionalLearner(TwoHeads(backbone, info.num_classes), section.image_size)
    sizes = {"num_classes": info.num_classes, "num_tasks": info.num_tasks}
    network = prompted.build(section, config.learner, query_dim=section.dim, **sizes)
    _check_supported(network, config.learner.name)
    return PromptedLearner(network, heads.LinearHead(info.num_classes))


def _check_supported(network, name):
    """Refuses learners with parts that DKT does not use.

    The parts are those of `models.learners.base.Learner`, and a `FittedHead`.
    """
    unused = ("trains_backbone", "learning_rate_factor", "update_state", "trained_tasks")
    found = [part for part in unused if getattr(type(network.learner), part) != getattr(base.Learner, part)]
    if network.is_fitted:
        found.append("a FittedHead")
    if found:
        raise UserError(
            f"learner.name={name!r} has {' and '.join(found)}: method 'dkt' shares one frozen backbone and trains "
            "heads by gradients: use method 'cdl'"
        )
