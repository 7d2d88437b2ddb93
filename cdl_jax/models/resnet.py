"""Residual networks for small pictures (He et al., 2016), with projection shortcuts, and wide ones."""

from functools import partial

import flax.linen as nn
import jax.numpy as jnp

from cdl_jax.errors import UserError
from cdl_jax.models.modules.batch_norm import BatchNorm
from cdl_jax.models.modules.conv import Backbone, conv, dense, global_pool, he_out

OPTIONS = {
    "family": "resnet",
    "block": "basic",  # or "bottleneck": four times as many channels leave a block
    "depths": (5, 5, 5),  # blocks of each stage
    "widths": (16, 32, 64),  # channels of each stage, before the bottleneck's factor 4
    "inner_multiplier": 1,  # of a bottleneck's inner width
    "zero_init": False,  # the last batch norm of each block starts at zero, so that blocks start as the identity
    "image_size": 32,
    "weights": "random",
    "weights_key": "",  # of a checkpoint with several networks, such as "model_ema"
}

SIZES = {
    "resnet20": {"depths": (3, 3, 3)},
    "resnet32": {},
    "resnet56": {"depths": (9, 9, 9)},
    "resnet110": {"block": "bottleneck", "depths": (12, 12, 12)},
    "wide_resnet20_8": {"block": "bottleneck", "depths": (2, 2, 2), "inner_multiplier": 8},
}

torch_name = None  # weights are read in the names of this package alone


class Block(nn.Module):
    """A residual block `[batch, height, width, channels]`; the shortcut is projected where the shape changes.

    padded: the shortcut has no weights: every `stride`-th pixel, with channels of zeros on both sides (He et al.'s A).
    kernel_init: of the convolutions.
    """

    width: int
    stride: int
    bottleneck: bool
    inner_multiplier: int
    zero_init: bool
    padded: bool = False
    kernel_init: nn.initializers.Initializer = he_out

    @nn.compact
    def __call__(self, x, train):
        conv_of = partial(conv, init=self.kernel_init)
        out = self.width * (4 if self.bottleneck else 1)
        inner = self.width * self.inner_multiplier if self.bottleneck else out
        last = nn.initializers.zeros if self.zero_init else nn.initializers.ones
        if self.bottleneck:
            y = nn.relu(BatchNorm(name="bn1")(conv_of(inner, 1, name="conv1")(x), train))
            y = nn.relu(BatchNorm(name="bn2")(conv_of(inner, 3, self.stride, name="conv2")(y), train))
            y = BatchNorm(name="bn3", scale_init=last)(conv_of(out, 1, name="conv3")(y), train)
        else:
            y = nn.relu(BatchNorm(name="bn1")(conv_of(inner, 3, self.stride, name="conv1")(x), train))
            y = BatchNorm(name="bn2", scale_init=last)(conv_of(out, 3, name="conv2")(y), train)
        if self.stride != 1 or x.shape[-1] != out:
            if self.padded:
                x = _widened(x[:, :: self.stride, :: self.stride], out)
            else:
                x = BatchNorm(name="shortcut_bn")(conv_of(out, 1, self.stride, name="shortcut")(x), train)
        return nn.relu(x + y)


def _widened(x, channels: int):
    """`x` with channels of zeros, as many before its own as behind."""
    missing = channels - x.shape[-1]
    return jnp.pad(x, ((0, 0), (0, 0), (0, 0), (missing // 2, missing - missing // 2)))


class Stages(nn.Module):
    """Stages of blocks: the first of `numbers` has `depths[0]` blocks of `widths[0]`, and so on; out: `layer<i>`."""

    numbers: tuple[int, ...]
    depths: tuple[int, ...]
    widths: tuple[int, ...]
    bottleneck: bool = False
    inner_multiplier: int = 1
    zero_init: bool = False
    padded: bool = False
    kernel_init: nn.initializers.Initializer = he_out

    @nn.compact
    def __call__(self, x, train):
        out = {}
        for number, depth, width in zip(self.numbers, self.depths, self.widths, strict=True):
            for i in range(depth):
                stride = 2 if i == 0 and number > 1 else 1
                kind = self.bottleneck, self.inner_multiplier, self.zero_init, self.padded, self.kernel_init
                x = Block(width, stride, *kind, name=f"layer{number}_{i}")(x, train)
            out[f"layer{number}"] = x
        return x, out


class Stem(nn.Module):
    """The first convolution and the `stages` behind it: `[batch, size, size, 3]` to a map."""

    stages: Stages
    width: int
    large: bool = False  # ImageNet's 7x7 convolution at stride 2 and the pooling behind it
    kernel_init: nn.initializers.Initializer = he_out

    @nn.compact
    def __call__(self, images, train):
        size, stride = (7, 2) if self.large else (3, 1)
        x = conv(self.width, size, stride, name="conv1", init=self.kernel_init)(images)
        x = nn.relu(BatchNorm(name="bn1")(x, train))
        if self.large:
            x = nn.max_pool(x, (3, 3), strides=(2, 2), padding=((1, 1), (1, 1)))
        return self.stages(x, train)


class Tail(nn.Module):
    """The last `stages`, the mean over the picture and the classifier."""

    stages: Stages
    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        x, out = self.stages(x, train)
        features = global_pool(x)
        out["features"] = features
        return dense(self.num_classes, features.shape[-1], name="classifier")(features), out


def build(options, num_classes: int) -> Backbone:
    """The network that an option section (see `OPTIONS`) describes; all but the last stage are its stem.

    Raises:
      UserError: options that do not fit together.
    """
    return residual(options, num_classes, stages=3, shared=2, large=False)


def residual(options, num_classes: int, *, stages: int, shared: int, large: bool) -> Backbone:
    """A residual network of so many `stages`, the first `shared` of which are in its stem.

    Raises:
      UserError: options that do not fit together.
    """
    if options.block not in ("basic", "bottleneck"):
        raise UserError(f"network.block={options.block!r}: use 'basic' or 'bottleneck'")
    if len(options.depths) != stages or len(options.widths) != stages:
        raise UserError(
            f"network.depths={tuple(options.depths)}, widths={tuple(options.widths)}: give {stages} numbers each"
        )
    numbers = range(1, stages + 1)

    def part(chosen):
        return Stages(
            numbers=tuple(numbers[chosen]),
            depths=tuple(options.depths[chosen]),
            widths=tuple(options.widths[chosen]),
            bottleneck=options.block == "bottleneck",
            inner_multiplier=options.inner_multiplier,
            zero_init=options.zero_init,
        )

    stem = Stem(part(slice(0, shared)), options.widths[0], large)
    return Backbone(stem, Tail(part(slice(shared, None)), num_classes))
