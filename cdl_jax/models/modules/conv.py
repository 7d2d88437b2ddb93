"""What the families of convolutional networks share: layers with torch's padding, and the cut where branches part.

Every family cuts its networks in two: a `stem`, which the branches of a branched network share, and a `tail`, of which
each branch has its own. A tail ends with the pooled features and a classifier.

    stem.apply(variables, images, train)  -> (map [batch, height, width, channels], {name: intermediate})
    tail.apply(variables, map, train)     -> (logits [batch, classes], {"features": [batch, dim], ...})

Variables are "params" and, for running statistics, "batch_stats".
"""

import flax.linen as nn

from cdl_jax.models.modules.heads import torch_bias, torch_kernel

# N(0, 2 / (outputs k k)) and N(0, 2 / (inputs k k)), not truncated.
he_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
he_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class Backbone(nn.Module):
    """A whole network: `apply(variables, images, train=...)` gives `(logits, out)`.

    images: float32 `[batch, size, size, 3]`. logits: float32 `[batch, classes]`. out: the intermediates of stem and
    tail by name, with `shared`, the map between them, and `features` `[batch, dim]`, what the classifier reads.
    """

    stem: nn.Module
    tail: nn.Module

    def __call__(self, images, train: bool = False):
        shared, early = self.stem(images, train)
        logits, late = self.tail(shared, train)
        return logits, {**early, "shared": shared, **late}


def apply(module: nn.Module, variables, x, train: bool, key):
    """A module's outputs and its new `{"batch_stats": ...}`, which is empty in evaluation or where it keeps none.

    key: of dropout.
    """
    if not train:
        return module.apply(variables, x, train=False), {}
    return module.apply(variables, x, train=True, mutable=["batch_stats"], rngs={"dropout": key})


def conv(
    features: int,
    size: int,
    stride: int = 1,
    *,
    name: str,
    bias: bool = False,
    init=he_out,
    groups: int = 1,
    dtype=None,
) -> nn.Conv:
    """A square convolution that pads `size // 2` on every side, at stride 2 too; `dtype` is that of its computation."""
    pad = size // 2
    return nn.Conv(
        features, (size, size), strides=stride, padding=((pad, pad), (pad, pad)), use_bias=bias, kernel_init=init,
        feature_group_count=groups, dtype=dtype, name=name,
    )  # fmt: skip


def dense(features: int, inputs: int, *, name: str, zero_bias: bool = False) -> nn.Dense:
    """A linear layer with torch's initial values; with `zero_bias` the bias starts at zero."""
    bias = nn.initializers.zeros if zero_bias else torch_bias(inputs)
    return nn.Dense(features, kernel_init=torch_kernel, bias_init=bias, name=name)


def global_pool(x):
    """Mean over the picture: `[batch, height, width, channels]` to `[batch, channels]`."""
    return x.mean(axis=(1, 2))
