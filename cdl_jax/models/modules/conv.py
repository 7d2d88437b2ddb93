"""Layers with torch's padding, and the split of a network into stem and tail.

The layers are for all convolutional families. The branches of a branched network share the `stem`. Each branch has its
own `tail`, which ends with the pooled features and a classifier.

    stem.apply(variables, images, train)  -> (map [batch, height, width, channels], {name: intermediate})
    tail.apply(variables, map, train)     -> (logits [batch, classes], {"features": [batch, dim], ...})

Variables are "params" and, for running statistics, "batch_stats".
"""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdl_jax.models.modules import layers
from cdl_jax.models.modules.heads import torch_bias, torch_kernel

# N(0, 2 / (outputs k k)) and N(0, 2 / (inputs k k)), not truncated.
he_out = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
he_in = nn.initializers.variance_scaling(2.0, "fan_in", "normal")


class Backbone(nn.Module):
    """A convolutional network of a stem and a tail."""

    stem: nn.Module
    tail: nn.Module

    def __call__(self, images: jax.Array, train: bool = False) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Computes logits and named intermediate outputs.

        Args:
          images: float32 `[batch, size, size, 3]`.
          train: whether batch norms use the statistics of the batch, default False.

        Returns:
          (logits float32 `[batch, classes]`, out). `out` has the intermediates of stem and tail by name, `shared`, the
          map between them, and `features` `[batch, dim]`, the input of the classifier.
        """
        shared, stem_out = self.stem(images, train)
        logits, tail_out = self.tail(shared, train)
        return logits, {**stem_out, "shared": shared, **tail_out}


def apply(module: nn.Module, variables: Any, x: jax.Array, train: bool, key: jax.Array) -> tuple[Any, dict]:
    """Applies a module and returns its outputs and its new running statistics.

    Args:
      variables: `{"params": ..., "batch_stats": ...}`.
      x: input of the module.
      train: whether batch norms use the statistics of the batch.
      key: of dropout.

    Returns:
      (outputs, `{"batch_stats": ...}`). The latter is empty in evaluation and for modules without batch norm.
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
    init: Callable = he_out,
    groups: int = 1,
    dtype: jnp.dtype | None = None,
) -> layers.Conv:
    """Returns a square convolution with a padding of `size // 2` on every side.

    The padding is the same at stride 2.

    Args:
      features: output channels.
      size: side of the kernel.
      stride: default 1.
      name: of the module.
      bias: whether there is a bias, default False.
      init: initializer of the kernel, default `he_out`.
      groups: number of channel groups, default 1.
      dtype: of the computation. None, the default: that of the input and the kernel.
    """
    pad = size // 2
    return layers.Conv(
        features, (size, size), strides=stride, padding=((pad, pad), (pad, pad)), use_bias=bias, kernel_init=init,
        feature_group_count=groups, dtype=dtype, name=name,
    )  # fmt: skip


def dense(features: int, inputs: int, *, name: str, zero_bias: bool = False) -> layers.Dense:
    """Returns a linear layer with torch's initial values.

    Args:
      features: output channels.
      inputs: input channels.
      name: of the module.
      zero_bias: whether the bias starts at zero, default False.
    """
    bias = nn.initializers.zeros if zero_bias else torch_bias(inputs)
    return layers.Dense(features, kernel_init=torch_kernel, bias_init=bias, name=name)


def global_pool(x: jax.Array) -> jax.Array:
    """Averages a map over all positions.

    The map is `[batch, height, width, channels]`, its average `[batch, channels]`.
    """
    return x.mean(axis=(1, 2))
