"""One network, trained with labels on each task: pretraining, fine-tuning, or a baseline with a single task. Or its
head alone, a linear probe of a frozen backbone.

`python -m cdl_jax.main --config configs/pretrain_glyph.py` writes the trained weights under timm's names into the run's
`weights.npz`; the other configs name that file in `teacher.weights` or `student.weights`. Networks with running
statistics are written with these, in our own names.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict

from cdl_jax import optim, plugins
from cdl_jax.errors import UserError
from cdl_jax.losses import cross_entropy, mask_classes
from cdl_jax.methods.base import Method, Outcome, StreamInfo, Update
from cdl_jax.methods.shared import rehearsal
from cdl_jax.methods.shared.peer_losses import top_k_correct
from cdl_jax.models import weights
from cdl_jax.models.modules import families
from cdl_jax.models.modules.conv import apply
from cdl_jax.models.modules.features import named_features
from cdl_jax.models.modules.heads import is_head

LEARNING = {
    # What the cross-entropy spans: classes of the "current" task, those "seen" so far, or "all" of the stream, which
    # predictions then span as well.
    "classes": "current",
    "label_smoothing": 0.0,
    **rehearsal.OPTIONS,
}
# What learns: the whole "network", or its "head" alone. The rest is then frozen and computes as it does when tested:
# running statistics stay, nothing drops out.
OPTIONS = {**LEARNING, "trained": "network"}


def defaults(network="glyph_student") -> dict:
    """The config sections of this method, for a named network of any family, with random weights."""
    return {"supervised": OPTIONS, "network": {**families.network_options(network), "weights": "random"}}


@dataclass(frozen=True)
class Supervised(Method):
    """See `methods.base.Method`."""

    supports_batch_statistics = True

    backbone: Any
    options: Any
    info: StreamInfo
    image_size: int
    weights: str | tuple[str, str]
    epochs: int
    batch_size: int
    optimizer: optim.Optimizer
    torch_name: Any = None
    trained: str = "network"
    networks: tuple[str, ...] = ("network",)

    @property
    def phases(self):
        return self.phases_of(self.loss)

    def phases_of(self, loss):
        """The phases in which the network learns by `loss`."""
        learn = Update(lambda path: path[:2] == ("network", "params"), self.optimizer, loss)
        return rehearsal.phases("network", self.epochs, (learn,), self.options, self.batch_size)

    @property
    def loss_classes(self):
        return self.options.classes

    @property
    def predict_over(self):
        return "all" if self.options.classes == "all" else "seen"

    def init(self, key):
        images = jnp.zeros((1, self.image_size, self.image_size, 3))
        return {"network": self.backbone.init(key, images)}

    def load_pretrained(self, variables):
        """Pretrained weights; new is the head of a ViT, one that learns alone, and any of another number of classes.

        Raises:
          UserError: the weights do not fit, or the head alone is to learn and the family has none by that name.
        """
        network, key = variables["network"], "network.weights"
        if self.trained == "head" and not any(map(is_head, flatten_dict(network["params"]))):
            raise UserError(
                "supervised.trained='head': this network has no layer by the name of a head: train it whole"
            )
        if not weights.is_vit(network):
            loaded = weights.load_network(self.weights, network, key, self.torch_name, new_head=True)
            if self.trained == "network":
                return {"network": loaded}
            params, fresh = flatten_dict(loaded["params"]), flatten_dict(network["params"])
            params |= {path: leaf for path, leaf in fresh.items() if is_head(path)}
            return {"network": {**loaded, "params": unflatten_dict(params)}}
        headless = {**network, "params": {part: leaves for part, leaves in network["params"].items() if part != "head"}}
        loaded = weights.load_network(self.weights, headless, key)
        return {"network": {**loaded, "params": {**network["params"], **loaded["params"]}}}

    def is_frozen(self, path):
        return self.trained == "head" and not is_head(path)

    def loss(self, variables, batch, context):
        """Cross-entropy with label smoothing over the classes that `options.classes` names."""
        total, _, changed = self.learn(variables, batch, context)
        return total, Outcome({"loss": total}, variables=changed)

    def learn(self, variables, batch, context):
        """(cross-entropy, logits `[batch, classes]`, partial variables to be replaced) of a batch."""
        key = jax.random.fold_in(context.key, 1)
        whole = self.trained == "network"
        (logits, _), stats = apply(self.backbone, variables["network"], batch["images"], whole, key)
        allowed = context.mask(self.options.classes, self.info.num_classes)
        total = cross_entropy(logits, batch["labels"], allowed)
        smoothing = self.options.label_smoothing
        if smoothing:
            log_p = jax.nn.log_softmax(mask_classes(logits, allowed))
            uniform = -jnp.where(allowed, log_p, 0).sum(axis=-1).mean() / allowed.sum()
            total = (1 - smoothing) * total + smoothing * uniform
        return total, logits, {"network": stats} if stats else {}

    def predict(self, variables, images, context):
        (logits, _), _ = apply(self.backbone, variables["network"], images, False, context.key)
        return {"network": logits}, {}

    def extra_metrics(self, logits, labels, context):
        """`{name: [batch]}`, see `methods.base.Method`."""
        allowed = context.mask(self.predict_over, self.info.num_classes)
        return {"network/top5": 100 * top_k_correct(logits["network"], labels, 5, allowed)}

    def teacher_outputs(self, network, variables, images, context, use_batch_statistics=False):
        """What the network tells as the teacher of another run (see `methods.base.Method`)."""
        (logits, out), _ = apply(self.backbone, variables[network], images, use_batch_statistics, context.key)
        return {**out, "logits": logits}

    def features(self, variables, images, context):
        """How the network sees pictures, see `methods.base.Method`."""
        (logits, out), _ = apply(self.backbone, variables["network"], images, False, context.key)
        return {"network": {**named_features(out), "logits": logits}}

    def export(self, variables):
        """File name -> variables that the run writes when it is finished; those of a ViT without its head.

        None where the head alone was trained: the others are in the file that the run began with.
        """
        network = variables["network"]
        if self.trained == "head":
            return {}
        if not weights.is_vit(network):
            return {"weights": network}
        return {"weights": {"params": {k: v for k, v in network["params"].items() if k != "head"}}}


def build(config, info: StreamInfo) -> Supervised:
    """The method that `config` describes, for the stream of `info`.

    Raises:
      UserError: options that are out of range or do not fit together.
    """
    if (trained := config.supervised.get("trained", "network")) not in ("network", "head"):
        raise UserError(f"supervised.trained={trained!r}: use 'network' or 'head'")
    return alone("supervised", config, info)


def alone(section: str, config, info: StreamInfo) -> Supervised:
    """A network that learns from labels by the options of a section, which has those of `LEARNING`.

    Raises:
      UserError: options that are out of range or do not fit together.
    """
    options = config[section]
    rehearsal.check(section, options)
    network = config.network
    family = plugins.load_plugin("models", network.family)
    return Supervised(
        backbone=family.build(network, info.num_classes),
        options=options,
        info=info,
        image_size=network.image_size,
        weights=weights.from_section(network),
        epochs=config.train.epochs,
        batch_size=config.train.batch_size,
        optimizer=optim.build(config.optim, config.train.epochs),
        torch_name=family.torch_name,
        trained=options.get("trained", "network"),
    )
