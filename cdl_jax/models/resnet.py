"""Residual networks for small images (He et al., 2016), with projection shortcuts.

`SIZES` has wide residual networks too.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax.errors import UserError
from cdl_jax.models.modules.batch_norm import BatchNorm
from cdl_jax.models.modules.conv import Backbone, conv, dense, global_pool, he_out
from cdl_jax.models.modules.network_options import shared_options
from cdl_jax.options import Option

OPTIONS = {
    **shared_options("resnet", image_size=32),
    "block": Option(
        "basic",
        "kind of the blocks; the output of a bottleneck has four times the channels",
        choices=("basic", "bottleneck"),
    ),
    "depths": Option((5, 5, 5), "blocks of each stage"),
    "widths": Option((16, 32, 64), "channels of each stage, before the bottleneck's factor 4", minimum=1),
    "inner_multiplier": Option(1, "factor of a bottleneck's inner width", minimum=1),
    "zero_init": Option(
        False, "the scale of the last batch norm of each block starts at zero: blocks start as the identity"
    ),
}

SIZES = {
    "resnet20": {"depths": (3, 3, 3)},
    "resnet32": {},
    "resnet56": {"depths": (9, 9, 9)},
    "resnet110": {"block": "bottleneck", "depths": (12, 12, 12)},
    "wide_resnet20_8": {"block": "bottleneck", "depths": (2, 2, 2), "inner_multiplier": 8},
}

torch_name = None  # weights are read only under the names of this package


class Block(nn.Module):
    """A residual block on `[batch, height, width, channels]`.

    The shortcut is projected if the shape changes.

    Attributes:
      width: channels, before the bottleneck's factor of 4.
      stride: of the first 3x3 convolution.
      bottleneck: whether the block is 1x1, 3x3, 1x1 instead of 3x3, 3x3.
      inner_multiplier: of the inner width of a bottleneck.
      zero_init: whether the scale of the last batch norm starts at zero.
      padded: whether the shortcut has no weights: every `stride`-th pixel, with channels of zeros on both sides (option
        A of He et al.). Default False.
      kernel_init: initializer of the convolutions, default `he_out`.
    """

    width: int
    stride: int
    bottleneck: bool
    inner_multiplier: int
    zero_init: bool
    padded: bool = False
    kernel_init: nn.initializers.Initializer = he_out

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        block_conv = partial(conv, init=self.kernel_init)
        out = self.width * (4 if self.bottleneck else 1)
        inner = self.width * self.inner_multiplier if self.bottleneck else out
        last_scale = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        if self.bottleneck:
            y = nn.relu(BatchNorm(name="bn1")(block_conv(inner, 1, name="conv1")(x), train))
            y = nn.relu(BatchNorm(name="bn2")(block_conv(inner, 3, self.stride, name="conv2")(y), train))
            y = BatchNorm(name="bn3", scale_init=last_scale)(block_conv(out, 1, name="conv3")(y), train)
        else:
            y = nn.relu(BatchNorm(name="bn1")(block_conv(inner, 3, self.stride, name="conv1")(x), train))
            y = BatchNorm(name="bn2", scale_init=last_scale)(block_conv(out, 3, name="conv2")(y), train)
        if self.stride != 1 or x.shape[-1] != out:
            if self.padded:
                x = _pad_channels(x[:, :: self.stride, :: self.stride], out)
            else:
                x = BatchNorm(name="shortcut_bn")(block_conv(out, 1, self.stride, name="shortcut")(x), train)
        return nn.relu(x + y)


def _pad_channels(x, channels: int):
    """Pads `x` with channels of zeros to `channels` in all.

    Half of the zeros come before the channels of `x`.
    """
    missing = channels - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))


class Stages(nn.Module):
    """Consecutive stages of blocks; out: `layer<i>`.

    Attributes:
      numbers: numbers i of the stages, from 1. All stages but number 1 halve the image.
      depths: blocks of each stage.
      widths: channels of each stage.
      bottleneck, inner_multiplier, zero_init, padded, kernel_init: of each block, see `Block`.
    """

    numbers: tuple[int, ...]
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    bottleneck: bool = False
    inner_multiplier: int = 1
    zero_init: bool = False
    padded: bool = False
    kernel_init: nn.initializers.Initializer = he_out

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        out = {}
        for number, depth, width in zip(self.numbers, self.depths, self.widths, strict=True):
            for i in range(depth):
                stride = 2 if i == 0 and number > 1 else 1
                options = self.bottleneck, self.inner_multiplier, self.zero_init, self.padded, self.kernel_init
                x = Block(width, stride, *options, name=f"layer{number}_{i}")(x, train)
            out[f"layer{number}"] = x
        return x, out


class Stem(nn.Module):
    """The first convolution and the first `stages`: `[batch, size, size, 3]` to a map."""

    stages: Stages
    width: int
    large: bool = False  # a 7x7 convolution at stride 2 and a max pooling, for ImageNet
    kernel_init: nn.initializers.Initializer = he_out

    @nn.compact
    def __call__(self, images: jax.Array, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        size, stride = (7, 2) if self.large else (3, 1)
        x = conv(self.width, size, stride, name="conv1", init=self.kernel_init)(images)
        x = nn.relu(BatchNorm(name="bn1")(x, train))
        if self.large:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return self.stages(x, train)


class Tail(nn.Module):
    """The last `stages`, the mean over all positions and the classifier."""

    stages: Stages
    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        x, out = self.stages(x, train)
        features = global_pool(x)
        out["features"] = features
        return dense(self.num_classes, features.shape[-1], name="classifier")(features), out


def build(options: ConfigDict, num_classes: int) -> Backbone:
    """Returns the network of an option section (see `OPTIONS`).

    All stages but the last are its stem.

    Raises:
      UserError: options do not fit together.
    """
    return build_residual(options, num_classes, stages=3, shared=2, large=False)


def build_residual(options: ConfigDict, num_classes: int, *, stages: int, shared: int, large: bool) -> Backbone:
    """Returns a residual network.

    Args:
      options: an option section, see `OPTIONS`.
      num_classes: number of logits.
      stages: number of stages.
      shared: number of stages of the stem, which branches share.
      large: whether the first convolution is that for ImageNet, see `Stem`.

    Raises:
      UserError: options do not fit together.
    """
    if len(options.depths) != stages or len(options.widths) != stages:
        raise UserError(
            f"network.depths={tuple(options.depths)}, widths={tuple(options.widths)}: give {stages} numbers each"
        )
    numbers = range(1, stages + 1)

    def build_stages(indices):
        return Stages(
            numbers=tuple(numbers[indices]),
            depths=tuple(options.depths[indices]),
            widths=tuple(options.widths[indices]),
            bottleneck=options.block == "bottleneck",
            inner_multiplier=options.inner_multiplier,
            zero_init=options.zero_init,
        )

    stem = Stem(build_stages(slice(0, shared)), options.widths[0], large)
    return Backbone(stem, Tail(build_stages(slice(shared, None)), num_classes))
