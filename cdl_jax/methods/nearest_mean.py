"""Nearest class mean (NCM) on a frozen backbone.

NCM is a baseline of continual learning without gradients. Each training image of a task passes the backbone once, with
the preprocessing of evaluation. The mean of a class is the mean of its images' features: of a ViT the class token, else
the input of the classifier. An image is assigned to the class with the nearest mean. With the cosine this is SimpleCIL
(Zhou et al., 2023, "Revisiting class-incremental learning with pre-trained models"). Later tasks do not change the
means of earlier classes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from cdl_jax import plugins
from cdl_jax.losses import Context, fill_with_smallest
from cdl_jax.methods.base import Method, Outcome, Path, Phase, StreamInfo, Update, Variables
from cdl_jax.models import vit, weights
from cdl_jax.models.learners.base import l2_normalize
from cdl_jax.models.modules import families
from cdl_jax.models.modules.conv import apply
from cdl_jax.models.modules.features import named_features
from cdl_jax.models.modules.heads import is_head
from cdl_jax.optim import NO_STEP
from cdl_jax.options import Option

OPTIONS = {
    "distance": Option(
        "cosine", "distance from an image's features to the class means", choices=("cosine", "euclidean")
    ),
}


def defaults(network: str = "glyph_student") -> dict[str, Mapping[str, Any]]:
    """Returns the config sections for a named network; `network.weights` is to be set."""
    return {"nearest_mean": OPTIONS, "network": families.network_options(network, weights="")}


@dataclass(frozen=True)
class NearestMean(Method):
    """Classifies by the nearest class mean.

    Variables are `{"network": {"backbone", "batch_stats", "means": {"sums", "counts"}}}`. Only `means` is not frozen:
    `sums` float32 `[classes, dim]` of features and `counts` float32 `[classes]` of images.

    Attributes:
      backbone: module of the network, `module(images, train=...) -> (logits, outputs by name)`.
      options: the section `nearest_mean`.
      info: the stream.
      image_size: side of the images in pixels.
      weights: of the network, see `models.weights.load_network`.
      torch_name: names of the family's arrays in PyTorch's state dicts, or None.
    """

    loss_classes = ""

    backbone: nn.Module
    options: ConfigDict
    info: StreamInfo
    image_size: int
    weights: str | tuple[str, str]
    torch_name: Callable[[str], str] | None = None
    networks: tuple[str, ...] = ("network",)

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        return (Phase("means", 1, (Update(lambda path: False, NO_STEP, self.add_batch),), sequential=True),)

    def init(self, key: jax.Array) -> Variables:
        images = jnp.zeros((1, self.image_size, self.image_size, 3))
        classes, variables = self.info.num_classes, dict(self.backbone.init(key, images))
        network = {"backbone": variables.pop("params"), **variables}
        dim = jax.eval_shape(self._features, network, images).shape[-1]
        return {"network": {**network, "means": {"sums": jnp.zeros((classes, dim)), "counts": jnp.zeros(classes)}}}

    def load_pretrained(self, variables: Variables) -> Variables:
        network = variables["network"]
        loaded = weights.load_network(
            self.weights, _module_variables(network), "network.weights", self.torch_name, new_head=True
        )
        backbone = flatten_dict(dict(loaded["params"]))
        # The head is unused. Zeros, so that a head that the file lacks does not differ between seeds.
        backbone |= {path: np.zeros(leaf.shape, leaf.dtype) for path, leaf in backbone.items() if is_head(path)}
        statistics = {name: leaves for name, leaves in loaded.items() if name != "params"}
        return {"network": {**network, **statistics, "backbone": unflatten_dict(backbone)}}

    def is_frozen(self, path: Path) -> bool:
        return path[1:2] != ("means",)

    def add_batch(self, variables: Variables, batch: Mapping[str, Any], context: Context) -> tuple[jax.Array, Outcome]:
        """Adds the features of a batch to the sums. The loss is 0."""
        network = variables["network"]
        features = self._features(network, batch["images"])
        one_hot = jax.nn.one_hot(batch["labels"], self.info.num_classes) * context.weight[:, None]
        sums = network["means"]["sums"] + jnp.einsum("bc,bd->cd", one_hot, features, precision="highest")
        means = {"sums": sums, "counts": network["means"]["counts"] + one_hot.sum(axis=0)}
        return jnp.zeros(()), Outcome({"images": context.weight.sum()}, {"network": {"means": means}})

    def predict(self, variables: Variables, images: jax.Array, context: Context) -> tuple[dict, dict]:
        """Returns cosines, or negative squared distances, to the class means."""
        network = variables["network"]
        features = self._features(network, images)
        sums, counts = network["means"]["sums"], network["means"]["counts"][:, None]
        means = sums / jnp.maximum(counts, 1)
        if self.options.distance == "euclidean":
            logits = -((features[:, None] - means) ** 2).sum(axis=-1)
        else:
            logits = jnp.einsum("bd,cd->bc", l2_normalize(features), l2_normalize(means), precision="highest")
        no_mean = jnp.finfo(jnp.float32).min / 2  # for classes without an image so far
        return {"network": jnp.where(counts[:, 0] > 0, logits, no_mean)}, {}

    def teacher_outputs(
        self,
        network: str,
        variables: Variables,
        images: jax.Array,
        context: Context,
        use_batch_statistics: bool = False,
    ) -> dict[str, jax.Array]:
        """Returns the network's outputs.

        The logits of classes without an image so far are the smallest logit of the other classes.
        """
        outputs = super().teacher_outputs(network, variables, images, context, use_batch_statistics)
        has_mean = variables["network"]["means"]["counts"] > 0
        return {**outputs, "logits": fill_with_smallest(outputs["logits"], has_mean)}

    def _features(self, network, images):
        """Returns float32 `[batch, dim]`."""
        (_, out), _ = apply(self.backbone, _module_variables(network), images, False, None)
        return named_features(out)["features"]


def _module_variables(network):
    """Returns a network's variables as its Flax module takes them."""
    statistics = {"batch_stats": network["batch_stats"]} if "batch_stats" in network else {}
    return {"params": network["backbone"], **statistics}


def build(config: ConfigDict, info: StreamInfo) -> NearestMean:
    """Builds the method from its config."""
    options, section = config.nearest_mean, config.network
    family = plugins.load_plugin("models", section.family)
    backbone = family.build(section, 0 if family is vit else info.num_classes)  # other families always have a head
    return NearestMean(backbone, options, info, section.image_size, weights.from_section(section), family.torch_name)
