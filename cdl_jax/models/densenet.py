"""DenseNet-BC for small images (Huang et al., 2017).

The branches of a branched network have a last dense block each.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax.models.modules.batch_norm import BatchNorm
from cdl_jax.models.modules.conv import Backbone, conv, dense, global_pool, he_in
from cdl_jax.models.modules.network_options import shared_options
from cdl_jax.options import Option

OPTIONS = {
    **shared_options("densenet", image_size=32),
    "growth": Option(12, "growth rate: channels that each layer adds", minimum=1),
    "blocks": Option((6, 6, 6), "layers of each block", minimum=1, lengths=(3,)),
    "init_features": Option(24, "channels of the first convolution", minimum=1),
    "bottleneck": Option(4, "inner width of a layer, in units of the growth", minimum=1),
    "compression": Option(0.5, "share of the channels that remain between blocks", above=0, maximum=1),
}

SIZES = {
    "densenetd40k12": {},
    "densenetd100k12": {"blocks": (16, 16, 16)},
    "densenetd190k12": {"blocks": (31, 31, 31)},
    "densenetd100k40": {"blocks": (16, 16, 16), "growth": 40},
}

torch_name = None  # weights are read only under the names of this package


class Block(nn.Module):
    """A dense block. Each layer appends `growth` channels to its input.

    Attributes:
      depth: number of layers.
      growth: channels that each layer adds.
      bottleneck: inner width of a layer over `growth`.
      updates: updates of the running statistics in one call, see `BatchNorm`.
    """

    depth: int
    growth: int
    bottleneck: int
    updates: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i in range(self.depth):
            y = nn.relu(BatchNorm(self.updates, name=f"norm1_{i}")(x, train))
            y = conv(self.bottleneck * self.growth, 1, name=f"conv1_{i}", init=he_in)(y)
            y = nn.relu(BatchNorm(self.updates, name=f"norm2_{i}")(y, train))
            y = conv(self.growth, 3, name=f"conv2_{i}", init=he_in)(y)
            x = jnp.concatenate([x, y], axis=-1)
        return x


class Stem(nn.Module):
    """The first convolution and two blocks with transitions; out: `layer<i>`."""

    blocks: tuple[Block, ...]
    init_features: int
    compression: float

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        x, out = conv(self.init_features, 3, name="conv0", init=he_in)(images), {}
        for i, block in enumerate(self.blocks, 1):
            x = nn.relu(BatchNorm(name=f"norm{i}")(block(x, train), train))
            x = conv(int(self.compression * x.shape[-1]), 1, name=f"transition{i}", init=he_in)(x)
            x = out[f"layer{i}"] = nn.avg_pool(x, (2, 2), strides=(2, 2))
        return x, out


class Tail(nn.Module):
    """The last block, batch norm, ReLU, mean over all positions, and classifier.

    Attributes:
      block: the last dense block. None: the input is its output.
      num_classes: number of logits.
    """

    block: Block | None
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool, skip_norm: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Computes the logits.

        With `skip_norm` the classifier reads the mean of the map without batch norm and ReLU.
        """
        if self.block is not None:
            x = self.block(x, train)
        last = x if skip_norm else nn.relu(BatchNorm(name="norm")(x, train))
        features = global_pool(last)
        logits = dense(self.num_classes, features.shape[-1], name="classifier", zero_bias=True)(features)
        return logits, {"layer3": x, "features": features}


def build(options: ConfigDict, num_classes: int) -> Backbone:
    """Returns the network of an option section (see `OPTIONS`)."""
    first, second, last = (Block(depth, options.growth, options.bottleneck) for depth in options.blocks)
    stem = Stem((first, second), options.init_features, options.compression)
    return Backbone(stem, Tail(last, num_classes))
