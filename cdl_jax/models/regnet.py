"""RegNetX and RegNetY (Radosavovic et al., 2020).

The branches of a branched network share the first two stages.
"""

import math
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax.models.modules import conv as cnn
from cdl_jax.models.modules.batch_norm import BatchNorm
from cdl_jax.models.modules.conv import Backbone, dense, global_pool
from cdl_jax.models.modules.network_options import shared_options
from cdl_jax.options import Option

OPTIONS = {
    **shared_options("regnet", image_size=224),
    "depth": Option(18, "blocks of all stages", minimum=1),
    # Block j has the width w0 wm^i nearest to w0 + wa j, rounded to a multiple of 8. Blocks of one width are a stage.
    "w0": Option(200, "width of the first block, rounded to a multiple of 8", minimum=1),
    "wa": Option(106.23, "slope of the block widths"),
    "wm": Option(2.48, "ratio between the widths of two stages", above=1),
    "group_width": Option(
        112, "channels of a group of the 3x3 convolution; widths are rounded to multiples of it", minimum=1
    ),
    "se_ratio": Option(0.25, "width of squeeze-and-excitation over the channels of the input; 0: none (RegNetX)"),
    "stem_width": Option(32, "channels of the stem", minimum=1),
    "dtype": Option(
        "float32",
        "dtype of the convolutions; bfloat16 computes norms, gates and all outputs in float32",
        choices=("float32", "bfloat16"),
    ),
}

SIZES = {
    "regnety_004": {"depth": 16, "w0": 48, "wa": 27.89, "wm": 2.09, "group_width": 8},
    "regnety_016": {"depth": 27, "w0": 48, "wa": 20.71, "wm": 2.65, "group_width": 24},
    "regnety_032": {"depth": 21, "w0": 80, "wa": 42.63, "wm": 2.66, "group_width": 24},
    "regnety_160": {"depth": 18, "w0": 200, "wa": 106.23, "wm": 2.48, "group_width": 112},
    "regnetx_008": {"depth": 16, "w0": 56, "wa": 35.73, "wm": 2.28, "group_width": 16, "se_ratio": 0.0},
    "regnetx_016": {"depth": 18, "w0": 80, "wa": 34.01, "wm": 2.25, "group_width": 24, "se_ratio": 0.0},
}


def compute_stages(options: ConfigDict) -> list[tuple[int, int]]:
    """Computes (width, number of blocks) of each stage by the rule of the paper.

    >>> from cdl_jax.options import defaults
    >>> compute_stages(ConfigDict(defaults(OPTIONS, **SIZES["regnety_004"])))
    [(48, 1), (104, 3), (208, 6), (440, 6)]
    """
    widths = []
    for j in range(options.depth):
        power = round(math.log((options.w0 + options.wa * j) / options.w0) / math.log(options.wm))
        widths.append(8 * round(options.w0 * options.wm**power / 8))
    stages = []
    for width in sorted(set(widths)):
        group = min(options.group_width, width)
        stages.append((group * round(width / group), widths.count(width)))
    return stages


class Block(nn.Module):
    """A residual block: 1x1, grouped 3x3, squeeze-and-excitation, 1x1."""

    width: int
    stride: int
    group_width: int
    se_ratio: float
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        width, inputs = self.width, x.shape[-1]
        conv = partial(cnn.conv, dtype=self.dtype)
        groups = width // min(self.group_width, width)
        y = nn.relu(BatchNorm(name="bn1")(conv(width, 1, name="conv1")(x), train))
        y = nn.relu(BatchNorm(name="bn2")(conv(width, 3, self.stride, groups=groups, name="conv2")(y), train))
        if self.se_ratio:
            inner = round(self.se_ratio * inputs)
            gate = nn.relu(dense(inner, width, name="se_fc1")(global_pool(y)))
            y = y * nn.sigmoid(dense(width, inner, name="se_fc2")(gate))[:, None, None]
        y = BatchNorm(name="bn3")(conv(width, 1, name="conv3")(y), train)
        if self.stride != 1 or inputs != width:
            x = BatchNorm(name="downsample_bn")(conv(width, 1, self.stride, name="downsample")(x), train)
        return nn.relu(x + y)


class Stages(nn.Module):
    """Consecutive stages of blocks; out: `stage<i>`, the output map of stage i.

    Attributes:
      first: number of the first stage.
      stages: (width, number of blocks) of each stage.
      group_width: channels of a group of the 3x3 convolutions.
      se_ratio: width of squeeze-and-excitation over the channels of the input; 0: none.
      stem_width: channels of a 3x3 convolution at stride 2 before the stages. 0, the default: none.
      num_classes: number of logits of a classifier after the stages. 0, the default: none.
      dtype: of the convolutions.
    """

    first: int
    stages: tuple[tuple[int, int], ...]
    group_width: int
    se_ratio: float
    stem_width: int = 0
    num_classes: int = 0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> tuple[jax.Array, dict[str, jax.Array]]:
        out = {}
        if self.stem_width:
            x = cnn.conv(self.stem_width, 3, 2, name="conv", dtype=self.dtype)(x)
            x = nn.relu(BatchNorm(name="bn")(x, train))
            out["stem"] = x
        for number, (width, depth) in enumerate(self.stages, self.first):
            for i in range(depth):
                block = Block(
                    width, 1 if i else 2, self.group_width, self.se_ratio, self.dtype, name=f"s{number}_b{i + 1}"
                )
                x = block(x, train)
            out[f"stage{number}"] = x
        if not self.num_classes:
            return x, out
        out["features"] = global_pool(x)
        return dense(self.num_classes, x.shape[-1], name="classifier")(out["features"]), out


def build(options: ConfigDict, num_classes: int) -> Backbone:
    """Returns the network of an option section (see `OPTIONS`).

    Its `features` are `[batch, width]` of the last stage.
    """
    stages, common = tuple(compute_stages(options)), (options.group_width, options.se_ratio)
    dtype = jnp.dtype(options.dtype)
    return Backbone(
        Stages(1, stages[:2], *common, stem_width=options.stem_width, dtype=dtype),
        Stages(3, stages[2:], *common, num_classes=num_classes, dtype=dtype),
    )


def torch_name(path: str) -> str:
    """Returns timm's name of a module.

    >>> torch_name("stem/s1_b1/bn2"), torch_name("stem/conv")
    ('s1.b1.conv2.bn', 'stem.conv')
    """
    _, _, module = path.partition("/")
    if module == "classifier":
        return "head.fc"
    stage, _, layer = module.partition("/")
    if not layer:
        return f"stem.{stage}"
    layer = {"downsample": "downsample.conv", "downsample_bn": "downsample.bn"}.get(layer, layer)
    layer = layer.replace("se_", "se.")
    if layer.startswith(("conv", "bn")):
        kind, number = layer[:-1], layer[-1]
        layer = f"conv{number}.{kind}"
    return f"{stage.replace('_', '.')}.{layer}"
