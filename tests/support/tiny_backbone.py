"""A family of networks with a cut, which compile fast.

They have dense layers and batch norms instead of convolutions.

`config.network.family` names it by its dotted path. Options: `widths`, the channels of stem and tail.
"""

import flax.linen as nn

from cdl_jax.models.modules.batch_norm import BatchNorm
from cdl_jax.models.modules.conv import Backbone

OPTIONS = {
    "family": "tests.support.tiny_backbone",
    "widths": (4, 6),
    "image_size": 8,
    "weights": "random",
    "weights_key": "",
}

SIZES = {}

torch_name = None


class Stem(nn.Module):
    """Every fourth pixel through a dense layer.

    Images `[batch, size, size, 3]` become maps `[batch, size / 4, size / 4, width]`.
    """

    width: int

    @nn.compact
    def __call__(self, images, train):
        x = nn.Dense(self.width, use_bias=False, name="dense")(images[:, ::4, ::4])
        return nn.relu(BatchNorm(name="norm")(x, train)), {}


class Tail(nn.Module):
    """A dense layer, the mean over the map and a classifier.

    Maps `[batch, height, width, channels]` become logits.
    """

    width: int
    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        x = nn.Dense(self.width, use_bias=False, name="dense")(x)
        features = nn.relu(BatchNorm(name="norm")(x, train)).mean(axis=(1, 2))
        return nn.Dense(self.num_classes, name="classifier")(features), {"features": features}


def build(options, num_classes: int) -> Backbone:
    """Builds the network of an option section."""
    stem, tail = options.widths
    return Backbone(Stem(stem), Tail(tail, num_classes))
