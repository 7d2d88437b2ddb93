"""Batch normalization with the running statistics of torch."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdl_jax.models.modules.layers import ReadsParams

EPSILON, MOMENTUM = 1e-5, 0.9


class BatchNorm(ReadsParams, nn.Module):
    """Normalizes float32 `[..., channels]` over all axes except the last.

    The running statistics `mean` and `var` are in the collection "batch_stats".

    With `train`, mean and biased variance of the batch normalize. Each running statistic becomes
    `momentum old + (1 - momentum) new`. The new variance is the unbiased one, `n / (n - 1)` times the variance of the
    batch, whereas `flax.linen.BatchNorm` stores the biased one. The statistics are those of the global batch, however
    it is sharded.

    Attributes:
      updates: number of updates of the running statistics in one call, default 1. A program that runs a layer twice on
        the same input updates them twice.
      scale_init: initializer of the scale, default ones.
      epsilon: added to the variance.
      momentum: weight of the old running statistics.
      affine: whether a trained scale and bias follow, default True.
    """

    updates: int = 1
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    epsilon: float = EPSILON
    momentum: float = MOMENTUM
    affine: bool = True

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        channels = x.shape[-1]
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        mean, var = running_mean.value, running_var.value
        if train:
            axes = tuple(range(x.ndim - 1))
            mean, var = x.mean(axes), x.var(axes)
            if not self.is_initializing():
                n, decay = x.size // channels, self.momentum**self.updates
                running_mean.value = decay * running_mean.value + (1 - decay) * mean
                running_var.value = decay * running_var.value + (1 - decay) * var * (n / max(n - 1, 1))
        normalized = (x - mean) / jnp.sqrt(var + self.epsilon)
        if not self.affine:
            return normalized
        scale = self.param("scale", self.scale_init, (channels,))
        return normalized * scale + self.param("bias", nn.initializers.zeros, (channels,))
