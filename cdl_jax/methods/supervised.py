"""One network, trained whole with labels on each task: pretraining where the stream has one task.

`python -m cdl_jax.main --config configs/pretrain_glyph.py` writes the trained weights under timm's names into the run's
`weights.npz`; the other configs name that file in `teacher.weights` or `student.weights`.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from cdl_jax import names, optim
from cdl_jax.losses import cross_entropy, mask_classes
from cdl_jax.methods.base import Outcome, Phase, StreamInfo, Update
from cdl_jax.models import vit, weights

OPTIONS = {
    "classes": "current",  # whose columns the cross-entropy spans: those of the "current" task, or all "seen" so far
    "label_smoothing": 0.0,
}


def defaults(network="glyph_student") -> dict:
    """The config sections of this method, for the named size of ViT."""
    return {"supervised": OPTIONS, "network": {**vit.variant(network), "weights": "random"}}


@dataclass(frozen=True)
class Supervised:
    """See `methods.base.Method`."""

    backbone: Any
    options: Any
    info: StreamInfo
    image_size: int
    weights: str
    epochs: int
    optimizer: optim.Optimizer
    networks: tuple[str, ...] = ("network",)

    @property
    def phases(self):
        return (Phase("network", self.epochs, (Update(lambda path: True, self.optimizer, self.loss),)),)

    def init(self, key):
        images = jnp.zeros((1, self.image_size, self.image_size, 3))
        return {"network": self.backbone.init(key, images)["params"]}

    def load(self, variables):
        return {"network": weights.load(self.weights, variables["network"], "network.weights")}

    def frozen(self, path):
        return False

    def start_task(self, variables, context):
        return variables

    def end_task(self, variables, context):
        return variables

    def loss(self, variables, batch, context):
        """Cross-entropy with label smoothing over the classes that `options.classes` names."""
        keys = {"dropout": jax.random.fold_in(context.key, 1)}
        logits, _ = self.backbone.apply({"params": variables["network"]}, batch["images"], train=True, rngs=keys)
        allowed = getattr(context, self.options.classes)(self.info.num_classes)
        total = cross_entropy(logits, batch["labels"], allowed)
        smoothing = self.options.label_smoothing
        if smoothing:
            log_p = jax.nn.log_softmax(mask_classes(logits, allowed))
            uniform = -jnp.where(allowed, log_p, 0).sum(axis=-1).mean() / allowed.sum()
            total = (1 - smoothing) * total + smoothing * uniform
        return total, Outcome({"loss": total})

    def predict(self, variables, images, context):
        logits, _ = self.backbone.apply({"params": variables["network"]}, images)
        return {"network": logits}, {}

    def export(self, variables):
        """File name -> parameters that the run writes under timm's names when it is finished: all but the head."""
        return {"weights": {part: params for part, params in variables["network"].items() if part != "head"}}


def build(config, info: StreamInfo) -> Supervised:
    """The method that `config` describes, for the stream of `info`."""
    section = config.network
    backbone = names.load("models", section.family).build(section, info.num_classes)
    optimizer = optim.build(config.optim, config.train.epochs)
    return Supervised(
        backbone, config.supervised, info, section.image_size, section.weights, config.train.epochs, optimizer
    )
