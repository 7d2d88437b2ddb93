"""EfficientNet-Lite: EfficientNet (Tan and Le, 2019) with ReLU6 instead of swish.

There is no squeeze-and-excitation. Padding is TensorFlow's: at stride 2 one pixel more below and to the right than
above and to the left. The weights were trained on pixels in [-1, 1]; `MEAN` and `STD` are values of `augment.mean` and
`augment.std` for them. The branches of a branched network share the first three stages.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax.models.modules import layers
from cdl_jax.models.modules.batch_norm import BatchNorm
from cdl_jax.models.modules.conv import Backbone, dense, global_pool, he_out
from cdl_jax.models.modules.network_options import shared_options
from cdl_jax.options import Option

MEAN, STD = (127 / 255,) * 3, (128 / 255,) * 3

OPTIONS = {
    **shared_options("efficientnet_lite", image_size=224),
    "width": Option(1.0, "factor of the channels of every stage, rounded to multiples of 8", above=0),
    "depth": Option(1.0, "factor of the blocks of every stage, except the first and the last, rounded up", minimum=1),
    "dropout": Option(0.2, "dropout of the features, before the classifier", below=1),
    "drop_path": Option(
        0.2, "rate of stochastic depth that a block after the last would have; it decreases linearly to 0", below=1
    ),
}

SIZES = {
    "efficientnet_lite0": {},
    "efficientnet_lite1": {"depth": 1.1, "image_size": 240},
    "efficientnet_lite2": {"width": 1.1, "depth": 1.2, "dropout": 0.3, "image_size": 260},
    "efficientnet_lite3": {"width": 1.2, "depth": 1.4, "dropout": 0.3, "image_size": 280},
    "efficientnet_lite4": {"width": 1.4, "depth": 1.8, "dropout": 0.3, "image_size": 300},
}

# Of each stage: side of the depthwise kernels, stride of the first block, expansion, channels, blocks.
_STAGES = ((3, 1, 1, 16, 1), (3, 2, 6, 24, 2), (5, 2, 6, 40, 2), (3, 2, 6, 80, 3), (5, 1, 6, 112, 3), (5, 2, 6, 192, 4),
           (3, 1, 6, 320, 1))  # fmt: skip
_FIRST, _LAST, _SHARED = 32, 1280, 3  # channels of the first and the last convolution, at all widths; stages


class Depthwise(layers.ReadsParams, nn.Module):
    """Convolves each channel of a map with its own kernel.

    The map is `[batch, height, width, channels]`. The convolution is computed as a sum over the positions of the
    kernel. On a CPU, XLA's convolution with as many groups as channels takes 14 times as long, which is nine tenths of
    the time of the network.
    """

    size: int
    stride: int = 1

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel = self.param("kernel", he_out, (self.size, self.size, 1, x.shape[-1]))
        (rows, height), (columns, width) = (self._padding_and_reach(side) for side in x.shape[1:3])
        x = jnp.pad(x, ((0, 0), rows, columns, (0, 0)))
        positions = [(i, j) for i in range(self.size) for j in range(self.size)]
        return sum(
            x[:, i : i + height : self.stride, j : j + width : self.stride] * kernel[i, j, 0] for i, j in positions
        )

    def _padding_and_reach(self, side):
        """Returns the padding (before, behind) of a side, and the reach of a position.

        The reach is the number of pixels that one kernel position covers.
        """
        reach = (-(-side // self.stride) - 1) * self.stride + 1
        pad = max(reach - 1 + self.size - side, 0)
        return (pad // 2, pad - pad // 2), reach


class Block(nn.Module):
    """An inverted residual block on `[batch, height, width, channels]`.

    It is 1x1 to `expansion` times the channels, depthwise, and 1x1 to `width` channels. If the shape is unchanged,
    there is a shortcut, and training drops the residual branch with probability `drop_path`.
    """

    width: int
    kernel: int
    stride: int
    expansion: int
    drop_path: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        inner, y = x.shape[-1] * self.expansion, x
        if self.expansion > 1:
            y = nn.relu6(_norm("bn0")(_conv(inner, 1, name="expand")(y), train))
        y = Depthwise(self.kernel, self.stride, name="depthwise")(y)
        y = nn.relu6(_norm("bn1")(y, train))
        y = _norm("bn2")(_conv(self.width, 1, name="project")(y), train)
        if self.stride > 1 or x.shape[-1] != self.width:
            return y
        return x + nn.Dropout(self.drop_path, broadcast_dims=(1, 2, 3), deterministic=not train)(y)


class Stages(nn.Module):
    """Consecutive stages, with the first convolution before stage 1.

    The named outputs are `stem` and `stage<i>`.

    Attributes:
      blocks: number of each stage, and the fields of its blocks.
      first: index of the first block in the network, default 0.
    """

    blocks: tuple[tuple[int, tuple[tuple, ...]], ...]
    first: int = 0

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        out, index = {}, self.first
        if not index:
            x = nn.relu6(_norm("bn")(_conv(_FIRST, 3, 2, name="conv")(x), train))
            out["stem"] = x
        for number, blocks in self.blocks:
            for block in blocks:
                x = Block(*block, name=f"block_{index}")(x, train)
                index += 1
            out[f"stage{number}"] = x
        return x, out


class Tail(nn.Module):
    """The last `stages`, last convolution, mean over all positions, and classifier."""

    stages: Stages
    num_classes: int
    dropout: float

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        x, out = self.stages(x, train)
        x = nn.relu6(_norm("bn")(_conv(_LAST, 1, name="conv")(x), train))
        out["features"] = features = global_pool(x)
        dropped = nn.Dropout(self.dropout, deterministic=not train)(features)
        return dense(self.num_classes, _LAST, name="classifier", zero_bias=True)(dropped), out


def build(options: ConfigDict, num_classes: int) -> Backbone:
    """Returns the network of an option section (see `OPTIONS`).

    Its output `features` is `[batch, 1280]`.
    """
    counts = [math.ceil(options.depth * blocks) for *_, blocks in _STAGES]
    counts[0], counts[-1] = _STAGES[0][-1], _STAGES[-1][-1]
    index, stages = 0, []
    for number, ((kernel, stride, expansion, channels, _), count) in enumerate(zip(_STAGES, counts, strict=True), 1):
        blocks = []
        for i in range(count):
            rate = options.drop_path * index / sum(counts)
            blocks.append((_round_to_eights(options.width * channels), kernel, 1 if i else stride, expansion, rate))
            index += 1
        stages.append((number, tuple(blocks)))
    last_stages = Stages(tuple(stages[_SHARED:]), first=sum(counts[:_SHARED]))
    return Backbone(Stages(tuple(stages[:_SHARED])), Tail(last_stages, num_classes, options.dropout))


def torch_name(path: str) -> str:
    """Returns the name of a module in efficientnet_lite_pytorch.

    >>> torch_name("tail/stages/block_5/expand")
    '_blocks.5._expand_conv'
    """
    known = {"conv": "conv_stem", "bn": "bn0"} if path.startswith("stem") else {"conv": "conv_head", "bn": "bn1"}
    *_, block, layer = path.split("/")
    if not block.startswith("block_"):
        return "_" + {**known, "classifier": "fc"}[layer]
    return f"_blocks.{block.removeprefix('block_')}._{layer}" + ("" if layer.startswith("bn") else "_conv")


def _conv(features, size, stride=1, *, name):
    return layers.Conv(
        features, (size, size), strides=stride, padding="SAME", use_bias=False, kernel_init=he_out, name=name
    )


def _norm(name):
    return BatchNorm(epsilon=1e-3, momentum=0.99, name=name)


def _round_to_eights(channels: float) -> int:
    """Rounds to the nearest multiple of 8 that is at least nine tenths of `channels`."""
    nearest = max(8, int(channels + 4) // 8 * 8)
    return nearest if nearest >= 0.9 * channels else nearest + 8
