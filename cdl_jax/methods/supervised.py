"""One network, trained whole with labels on each task: pretraining, fine-tuning, or a baseline with a single task.

`python -m cdl_jax.main --config configs/pretrain_glyph.py` writes the trained weights under timm's names into the run's
`weights.npz`; the other configs name that file in `teacher.weights` or `student.weights`. Networks with running
statistics are written with these, in our own names.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from cdl_jax import names, optim
from cdl_jax.losses import cross_entropy, mask_classes
from cdl_jax.methods.base import Outcome, Phase, StreamInfo, Update
from cdl_jax.methods.peer_losses import top_k
from cdl_jax.models import families, weights
from cdl_jax.models.cnn import apply

OPTIONS = {
    "classes": "current",  # whose columns the cross-entropy spans: those of the "current" task, or all "seen" so far
    "label_smoothing": 0.0,
}


def defaults(network="glyph_student") -> dict:
    """The config sections of this method, for a named network of any family, with random weights."""
    return {"supervised": OPTIONS, "network": {**families.variant(network), "weights": "random"}}


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
    torch_name: Any = None
    networks: tuple[str, ...] = ("network",)

    @property
    def phases(self):
        return (Phase("network", self.epochs, (Update(lambda path: path[1] == "params", self.optimizer, self.loss),)),)

    def init(self, key):
        images = jnp.zeros((1, self.image_size, self.image_size, 3))
        return {"network": self.backbone.init(key, images)}

    def load(self, variables):
        """Pretrained weights, for all but the head of a ViT, which is new."""
        network = variables["network"]
        if not weights.is_vit(network):
            return {"network": weights.load_network(self.weights, network, "network.weights", self.torch_name)}
        headless = {**network, "params": {part: leaves for part, leaves in network["params"].items() if part != "head"}}
        loaded = weights.load_network(self.weights, headless, "network.weights")
        return {"network": {**loaded, "params": {**network["params"], **loaded["params"]}}}

    def frozen(self, path):
        return False

    def start_task(self, variables, context):
        return variables

    def end_task(self, variables, context):
        return variables

    def loss(self, variables, batch, context):
        """Cross-entropy with label smoothing over the classes that `options.classes` names."""
        key = jax.random.fold_in(context.key, 1)
        (logits, _), stats = apply(self.backbone, variables["network"], batch["images"], True, key)
        allowed = getattr(context, self.options.classes)(self.info.num_classes)
        total = cross_entropy(logits, batch["labels"], allowed)
        smoothing = self.options.label_smoothing
        if smoothing:
            log_p = jax.nn.log_softmax(mask_classes(logits, allowed))
            uniform = -jnp.where(allowed, log_p, 0).sum(axis=-1).mean() / allowed.sum()
            total = (1 - smoothing) * total + smoothing * uniform
        return total, Outcome({"loss": total}, variables={"network": stats} if stats else {})

    def predict(self, variables, images, context):
        (logits, _), _ = apply(self.backbone, variables["network"], images, False, context.key)
        return {"network": logits}, {}

    def measures(self, logits, labels, context):
        """`{name: [batch]}`, see `methods.base.Method`."""
        allowed = context.seen(self.info.num_classes)
        return {"network/top5": 100 * top_k(logits["network"], labels, 5, allowed)}

    def outputs(self, network, variables, images, context):
        """What the network tells as the teacher of another run (see `methods.base.Method`)."""
        (logits, out), _ = apply(self.backbone, variables[network], images, False, context.key)
        return {**out, "logits": logits}

    def export(self, variables):
        """File name -> variables that the run writes when it is finished; those of a ViT without its head."""
        network = variables["network"]
        if not weights.is_vit(network):
            return {"weights": network}
        return {"weights": {"params": {k: v for k, v in network["params"].items() if k != "head"}}}


def build(config, info: StreamInfo) -> Supervised:
    """The method that `config` describes, for the stream of `info`."""
    section = config.network
    family = names.load("models", section.family)
    return Supervised(
        backbone=family.build(section, info.num_classes),
        options=config.supervised,
        info=info,
        image_size=section.image_size,
        weights=section.weights,
        epochs=config.train.epochs,
        optimizer=optim.build(config.optim, config.train.epochs),
        torch_name=getattr(family, "torch_name", None),
    )
