"""VGG with batch normalization for small images (Simonyan and Zisserman, 2015).

The branches of a branched network have a last group each.
"""

import flax.linen as nn
import jax
from ml_collections import ConfigDict

from cdl_jax.models.modules.batch_norm import BatchNorm
from cdl_jax.models.modules.conv import Backbone, conv
from cdl_jax.models.modules.heads import torch_bias
from cdl_jax.models.modules.network_options import shared_options
from cdl_jax.options import Option

OPTIONS = {
    **shared_options("vgg", image_size=32),
    "image_size": Option(32, "side of the input images in pixels", minimum=32, reason="VGG halves an image five times"),
    "channel_unit": Option(
        64, "channels of the first group; the five groups have 1, 2, 4, 8 and 8 times as many", minimum=1
    ),
    "group_depth": Option(3, "convolutions of each of the last three groups", minimum=1),
    "dropout": Option(0.0, "dropout before each of the last two linear layers", below=1),
    "torch_head_bias": Option(False, "biases of the linear layers start from torch's initial values instead of zero"),
}

SIZES = {"vgg16": {}, "vgg19": {"group_depth": 4}}

torch_name = None  # weights are read only under the names of this package


class Group(nn.Module):
    """`depth` times a convolution, batch norm and ReLU, then a 2x2 max pooling."""

    depth: int
    width: int
    updates: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        for i in range(self.depth):
            x = conv(self.width, 3, name=f"conv{i}", bias=True)(x)
            x = nn.relu(BatchNorm(self.updates, name=f"bn{i}")(x, train))
        return nn.max_pool(x, (2, 2), strides=(2, 2))


class Stem(nn.Module):
    """The first four groups; out: `layer<i>`."""

    channel_unit: int
    group_depth: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        out = {}
        for i, (depth, times) in enumerate(((2, 1), (2, 2), (self.group_depth, 4), (self.group_depth, 8))):
            x = out[f"layer{i}"] = Group(depth, times * self.channel_unit, name=f"layer{i}")(x, train)
        return x, out


class Tail(nn.Module):
    """The last group and the classifier of three linear layers.

    The output `features` is the flattened map.

    Attributes:
      channel_unit: channels of the first group.
      group_depth: convolutions of the group.
      num_classes: number of logits.
      dropout: rate before each of the last two linear layers.
      torch_head_bias: whether biases start from torch's initial values instead of zero.
      updates: updates of the running statistics in one call, see `BatchNorm`.
    """

    channel_unit: int
    group_depth: int
    num_classes: int
    dropout: float
    torch_head_bias: bool
    updates: int = 1

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        last = Group(self.group_depth, 8 * self.channel_unit, self.updates, name="layer4")(x, train)
        x = features = last.reshape(len(last), -1)
        for i, width in enumerate((8 * self.channel_unit, 8 * self.channel_unit, self.num_classes)):
            bias = torch_bias(x.shape[-1]) if self.torch_head_bias else nn.initializers.zeros
            x = nn.Dense(width, kernel_init=nn.initializers.normal(0.01), bias_init=bias, name=f"fc{i}")(x)
            if i < 2:
                x = nn.Dropout(self.dropout, deterministic=not train)(nn.relu(x))
        return x, {"layer4": last, "features": features}


def build(options: ConfigDict, num_classes: int) -> Backbone:
    """Returns the network of an option section (see `OPTIONS`)."""
    sizes = options.channel_unit, options.group_depth
    return Backbone(Stem(*sizes), Tail(*sizes, num_classes, options.dropout, options.torch_head_bias))
