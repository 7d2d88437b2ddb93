"""Layers whose weights are divided by an estimate of their spectral norm.

Miyato et al., 2018. A weight is a matrix M `[outputs, inputs]`: a kernel with all axes except the last as its inputs, a
table with its rows as its outputs. The collection "spectral" has a vector `u` float32 `[1, outputs]` for each layer.
Each use of a layer is one step of the power iteration. With `train` the new u is stored, so "spectral" must be mutable;
otherwise the new u is used once and dropped. Source: layers.py of ajbrock/BigGAN-PyTorch.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdl_jax.models.modules.heads import torch_bias
from cdl_jax.models.modules.layers import ReadsParams

EPSILON = 1e-8  # the least length by which a vector of the power iteration is divided
# Half the digits of TF32 would be lost in each step of the power iteration.
_PRECISION = jax.lax.Precision.HIGHEST

normal_init = nn.initializers.normal(0.02)


def spectral_norm(matrix: jax.Array, u: jax.Array, epsilon: float = EPSILON) -> tuple[jax.Array, jax.Array]:
    """Estimates the spectral norm of a matrix M by one step of the power iteration.

    `v = unit(M^T u)`, `u' = unit(M v)`, `sigma = u'^T M v`. u' and v have no gradient, M has.

    Args:
      matrix: M, float32 `[outputs, inputs]`.
      u: float32 `[1, outputs]`.
      epsilon: least length by which `unit` divides, default 1e-8.

    Returns:
      (sigma, a float32 scalar; u' float32 `[1, outputs]`).

    >>> sigma, u = spectral_norm(jnp.diag(jnp.array([2.0, 1.0])), jnp.array([[1.0, 0.0]]))
    >>> float(sigma), u.tolist()
    (2.0, [[1.0, 0.0]])
    """

    def unit(a):
        return a / jnp.maximum(jnp.linalg.norm(a), epsilon)

    fixed = jax.lax.stop_gradient(matrix)
    v = unit(jnp.matmul(u, fixed, precision=_PRECISION))
    u = unit(jnp.matmul(v, fixed.T, precision=_PRECISION))
    sigma = jnp.matmul(jnp.matmul(v, matrix.T, precision=_PRECISION), u.T, precision=_PRECISION)
    return sigma[0, 0], u


class SpectralConv(ReadsParams, nn.Module):
    """A convolution at stride 1 that keeps the height and width of maps.

    Attributes:
      features: output channels.
      size: odd side of the kernel, default 3.
    """

    features: int
    size: int = 3

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        shape = (self.size, self.size, x.shape[-1], self.features)
        kernel = self.param("kernel", normal_init, shape)
        bias = self.param("bias", torch_bias(math.prod(shape[:-1])), (self.features,))
        kernel = _divide(self, kernel, kernel.reshape(-1, self.features).T, train)
        dimensions = ("NHWC", "HWIO", "NHWC")
        y = jax.lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=dimensions, precision=_PRECISION
        )  # fmt: skip
        return y + bias


class SpectralDense(ReadsParams, nn.Module):
    """A linear layer from `[batch, inputs]` to `[batch, features]`."""

    features: int

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        kernel = self.param("kernel", normal_init, (x.shape[-1], self.features))
        bias = self.param("bias", torch_bias(x.shape[-1]), (self.features,))
        return jnp.matmul(x, _divide(self, kernel, kernel.T, train), precision=_PRECISION) + bias


class SpectralEmbed(ReadsParams, nn.Module):
    """A table of a vector for each class: labels `[n]` select `[n, features]`."""

    num_classes: int
    features: int

    @nn.compact
    def __call__(self, labels: jax.Array, train: bool) -> jax.Array:
        table = self.param("embedding", normal_init, (self.num_classes, self.features))
        return _divide(self, table, table, train)[labels]


def _divide(layer, weight, matrix, train):
    """Returns the weight over its norm; with `train`, stores the layer's new u."""

    def first():
        return jax.random.normal(layer.make_rng("params"), (1, len(matrix)))

    u = layer.variable("spectral", "u", first)
    sigma, new = spectral_norm(matrix, u.value)
    if train and not layer.is_initializing():
        u.value = new
    return weight / sigma
