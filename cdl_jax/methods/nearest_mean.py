"""Nearest class mean on a frozen backbone: no gradient at all, a row that continual learners are compared with.

Each task's training pictures, as they would be tested, pass the backbone once. A class is the mean of its pictures'
features (of a ViT the class token, else what the classifier would read), and a picture is of the class whose mean is
nearest: NCM, or with the cosine SimpleCIL (Zhou et al., 2023, "Revisiting class-incremental learning with pre-trained
models"). A mean once learnt never changes; those of later classes only compete with it.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from cdl_jax import plugins
from cdl_jax.errors import UserError
from cdl_jax.methods.base import Method, Outcome, Phase, StreamInfo, Update
from cdl_jax.models import vit, weights
from cdl_jax.models.modules import families
from cdl_jax.models.modules.conv import apply
from cdl_jax.models.modules.features import named_features
from cdl_jax.models.modules.heads import is_head
from cdl_jax.models.prompts.base import l2_normalize
from cdl_jax.optim import Optimizer

OPTIONS = {"distance": "cosine"}  # of a picture to the class means, or "euclidean"

_STILL = Optimizer(optax.identity(), optax.constant_schedule(0.0))


def defaults(network="glyph_student") -> dict:
    """The config sections of this method, for a named network of any family, whose weights are to be named."""
    return {"nearest_mean": OPTIONS, "network": {**families.network_options(network), "weights": ""}}


@dataclass(frozen=True)
class NearestMean(Method):
    """See `methods.base.Method`. `means` are `sums` `[classes, dim]` of features over `counts` `[classes]`."""

    backbone: Any
    options: Any
    info: StreamInfo
    image_size: int
    weights: str | tuple[str, str]
    torch_name: Any = None
    networks: tuple[str, ...] = ("network",)
    loss_classes: str = ""

    @property
    def phases(self):
        return (Phase("means", 1, (Update(lambda path: False, _STILL, self.add),), sequential=True),)

    def init(self, key):
        images = jnp.zeros((1, self.image_size, self.image_size, 3))
        classes, variables = self.info.num_classes, dict(self.backbone.init(key, images))
        network = {"backbone": variables.pop("params"), **variables}
        dim = jax.eval_shape(self._features, network, images).shape[-1]
        return {"network": {**network, "means": {"sums": jnp.zeros((classes, dim)), "counts": jnp.zeros(classes)}}}

    def load_pretrained(self, variables):
        network = variables["network"]
        loaded = weights.load_network(
            self.weights, _variables(network), "network.weights", self.torch_name, new_head=True
        )
        backbone = flatten_dict(dict(loaded["params"]))
        # Nobody reads the head: where the file has none that fits, it is not to be drawn for each seed.
        backbone |= {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in backbone.items() if is_head(path)}
        rest = {name: leaves for name, leaves in loaded.items() if name != "params"}
        return {"network": {**network, **rest, "backbone": unflatten_dict(backbone)}}

    def is_frozen(self, path):
        return path[1:2] != ("means",)

    def add(self, variables, batch, context):
        """Adds a batch to the sums; nothing is minimised."""
        network = variables["network"]
        features = self._features(network, batch["images"])
        member = jax.nn.one_hot(batch["labels"], self.info.num_classes) * context.weight[:, None]
        sums = network["means"]["sums"] + jnp.einsum("bc,bd->cd", member, features, precision="highest")
        means = {"sums": sums, "counts": network["means"]["counts"] + member.sum(axis=0)}
        return jnp.zeros(()), Outcome({"images": context.weight.sum()}, {"network": {"means": means}})

    def predict(self, variables, images, context):
        """Cosines, or minus squared distances, to the class means."""
        network = variables["network"]
        features = self._features(network, images)
        sums, counts = network["means"]["sums"], network["means"]["counts"][:, None]
        means = sums / jnp.maximum(counts, 1)
        if self.options.distance == "euclidean":
            logits = -((features[:, None] - means) ** 2).sum(axis=-1)
        else:
            logits = jnp.einsum("bd,cd->bc", l2_normalize(features), l2_normalize(means), precision="highest")
        unknown = jnp.finfo(jnp.float32).min / 2  # before a class is learnt it has no mean
        return {"network": jnp.where(counts[:, 0] > 0, logits, unknown)}, {}

    def _features(self, network, images):
        """`[batch, dim]` float32."""
        (_, out), _ = apply(self.backbone, _variables(network), images, False, None)
        return named_features(out)["features"]


def _variables(network):
    """A network's variables as its module takes them."""
    stats = {"batch_stats": network["batch_stats"]} if "batch_stats" in network else {}
    return {"params": network["backbone"], **stats}


def build(config, info: StreamInfo) -> NearestMean:
    """The method that `config` describes, for the stream of `info`.

    Raises:
      UserError: an unknown distance.
    """
    options, section = config.nearest_mean, config.network
    if options.distance not in ("cosine", "euclidean"):
        raise UserError(f"nearest_mean.distance={options.distance!r}: use 'cosine' or 'euclidean'")
    family = plugins.load_plugin("models", section.family)
    backbone = family.build(section, 0 if family is vit else info.num_classes)  # of others the head is not looked at
    return NearestMean(backbone, options, info, section.image_size, weights.from_section(section), family.torch_name)
