"""Batch normalisation whose running statistics are those of torch."""

import flax.linen as nn
import jax.numpy as jnp

EPSILON, MOMENTUM = 1e-5, 0.9


class BatchNorm(nn.Module):
    """Normalises `[..., channels]` over all axes but the last, float32; keeps `mean` and `var` in "batch_stats".

    With `train` the batch's own mean and biased variance normalise, and each running statistic becomes `0.9 old + 0.1
    new` (with the default `momentum`), where the new variance is the unbiased one, `n / (n - 1)` times that of the
    batch. (`flax.linen.BatchNorm` keeps the biased one.) The statistics are those of the whole batch however it is
    sharded.

    updates: how often a call moves the running statistics towards the batch's. A program that runs a layer twice on
      the same input moves them twice.
    """

    updates: int = 1
    scale_init: nn.initializers.Initializer = nn.initializers.ones
    epsilon: float = EPSILON
    momentum: float = MOMENTUM

    @nn.compact
    def __call__(self, x, train: bool):
        channels = x.shape[-1]
        scale = self.param("scale", self.scale_init, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        running_mean = self.variable("batch_stats", "mean", jnp.zeros, (channels,))
        running_var = self.variable("batch_stats", "var", jnp.ones, (channels,))
        mean, var = running_mean.value, running_var.value
        if train:
            axes = tuple(range(x.ndim - 1))
            mean, var = x.mean(axes), x.var(axes)
            if not self.is_initializing():
                n, keep = x.size // channels, self.momentum**self.updates
                running_mean.value = keep * running_mean.value + (1 - keep) * mean
                running_var.value = keep * running_var.value + (1 - keep) * var * (n / max(n - 1, 1))
        return (x - mean) / jnp.sqrt(var + self.epsilon) * scale + bias
