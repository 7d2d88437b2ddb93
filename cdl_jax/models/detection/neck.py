"""Projection of a backbone's maps and tokens to one width, and cross-scale fusion.

All statistics and convolutions stop at the extent (see `masks`): positions outside it are 0.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdl_jax.models.modules import layers
from cdl_jax.models.modules.heads import torch_bias, torch_kernel

GROUPS = 32
FUSION_WIDTH = 64  # inner width of the residual units

_xavier = nn.initializers.xavier_uniform()


def wide(dtype: jnp.dtype) -> jnp.dtype:
    """Returns the dtype of sums, softmax and coordinates: at least float32.

    >>> wide(jnp.bfloat16)
    dtype('float32')
    """
    return jnp.promote_types(dtype, jnp.float32)


def xavier_dense(features: int, dtype: jnp.dtype, name: str) -> layers.Dense:
    """Returns a dense layer with Xavier's uniform kernel and a bias of 0."""
    return layers.Dense(features, dtype=dtype, kernel_init=_xavier, name=name)


def torch_dense(features: int, inputs: int, dtype: jnp.dtype, name: str) -> layers.Dense:
    """Returns a dense layer with the initial values of torch.nn.Linear."""
    return layers.Dense(features, dtype=dtype, kernel_init=torch_kernel, bias_init=torch_bias(inputs), name=name)


class GroupNorm(layers.ReadsParams, nn.Module):
    """Normalizes 32 groups of channels over the positions inside the extents.

    The statistics are computed in float32.
    """

    dtype: jnp.dtype = jnp.float32
    epsilon: float = 1e-5

    @nn.compact
    def __call__(self, x: jax.Array, inside: jax.Array | None = None) -> jax.Array:
        """Normalizes each image.

        Args:
          x: `[batch, *positions, channels]`.
          inside: bool `[batch, *positions]`; the output is 0 elsewhere. Default None: all positions.

        Returns:
          `[batch, *positions, channels]`.
        """
        channels = x.shape[-1]
        groups = x.astype(wide(self.dtype)).reshape(x.shape[0], -1, GROUPS, channels // GROUPS)
        if inside is None:
            mean = groups.mean(axis=(1, 3), keepdims=True)
            variance = ((groups - mean) ** 2).mean(axis=(1, 3), keepdims=True)
        else:
            flat = inside.reshape(x.shape[0], -1, 1, 1)
            count = flat.sum(axis=1, keepdims=True) * (channels // GROUPS)
            mean = jnp.where(flat, groups, 0).sum(axis=(1, 3), keepdims=True) / count
            variance = jnp.where(flat, (groups - mean) ** 2, 0).sum(axis=(1, 3), keepdims=True) / count
        normalized = ((groups - mean) * jax.lax.rsqrt(variance + self.epsilon)).reshape(x.shape)
        scale = self.param("scale", nn.initializers.ones, (channels,))
        bias = self.param("bias", nn.initializers.zeros, (channels,))
        y = (normalized * scale + bias).astype(self.dtype)
        return y if inside is None else jnp.where(inside[..., None], y, 0)


class Projection(nn.Module):
    """A linear layer to `dim` channels and a `GroupNorm`."""

    dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, inside: jax.Array | None = None) -> jax.Array:
        """Projects x `[batch, *positions, channels]` to `[batch, *positions, dim]`.

        `inside` is as in `GroupNorm`.
        """
        return GroupNorm(self.dtype, name="norm")(xavier_dense(self.dim, self.dtype, "linear")(x), inside)


class ResidualUnit(nn.Module):
    """Adds `conv1x1(relu(conv3x3(relu(conv1x1(relu(x))))))` to x."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, inside: jax.Array) -> jax.Array:
        """Returns `[batch, height, width, channels]`.

        The 3x3 convolution reads 0 outside `inside`.
        """
        hidden = torch_dense(FUSION_WIDTH, x.shape[-1], self.dtype, "conv1")(nn.relu(x))
        hidden = jnp.where(inside[..., None], nn.relu(hidden), 0)
        bias = torch_bias(9 * FUSION_WIDTH)
        hidden = layers.Conv(
            FUSION_WIDTH, (3, 3), dtype=self.dtype, kernel_init=torch_kernel, bias_init=bias, name="conv2"
        )(hidden)
        return x + torch_dense(x.shape[-1], FUSION_WIDTH, self.dtype, "conv3")(nn.relu(hidden))


class CrossScaleFusion(nn.Module):
    """A top-down pyramid: each map receives the coarser maps.

    Attributes:
      dim: number of channels of all outputs.
      dtype: of the computation.

    ViDT+ (Song et al., 2022).
    """

    dim: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self, maps: Sequence[jax.Array], inside: Sequence[jax.Array], extents: Sequence[jax.Array]
    ) -> list[jax.Array]:
        """Fuses the maps.

        Args:
          maps: fine to coarse, each `[batch, height, width, channels]`.
          inside: of each map, bool `[batch, height, width]`.
          extents: of each map, int32 `[batch, 2]`, (height, width).

        Returns:
          Coarse to fine, each `[batch, height, width, dim]`; 0 outside the extents.
        """
        fused, path = [], None
        for level in reversed(range(len(maps))):
            y = torch_dense(self.dim, maps[level].shape[-1], self.dtype, f"layer_{level}_rn")(maps[level])
            y = GroupNorm(self.dtype, name=f"p_norm_{level}")(y, inside[level])
            if path is not None:
                coarse = resize_aligned(path, extents[level + 1], extents[level], y.shape[1:3])
                coarse = torch_dense(self.dim, self.dim, self.dtype, f"refinenet_{level}_smoothing")(coarse)
                y = coarse + ResidualUnit(self.dtype, name=f"refinenet_{level}_resConfUnit1")(y, inside[level])
            path = ResidualUnit(self.dtype, name=f"refinenet_{level}_resConfUnit2")(y, inside[level])
            path = jnp.where(inside[level][..., None], path, 0)
            fused.append(path)
        return fused


def resize_aligned(x: jax.Array, source: jax.Array, target: jax.Array, shape: Sequence[int]) -> jax.Array:
    """Resizes maps by bilinear interpolation with aligned corners.

    Args:
      x: `[batch, height, width, channels]`.
      source: int32 `[batch, 2]`, extents of x.
      target: int32 `[batch, 2]`, extents of the result.
      shape: (height, width) of the result; positions outside `target` have no meaning.

    Returns:
      `[batch, *shape, channels]`.
    """
    rows = _aligned_matrix(source[:, 0], target[:, 0], x.shape[1], shape[0]).astype(x.dtype)
    columns = _aligned_matrix(source[:, 1], target[:, 1], x.shape[2], shape[1]).astype(x.dtype)
    return jnp.einsum("byi,bijc,bxj->byxc", rows, x, columns)


def _aligned_matrix(source, target, inputs, outputs):
    """Returns interpolation weights `[batch, outputs, inputs]`."""
    step = (source - 1) / jnp.maximum(target - 1, 1)
    position = jnp.minimum(jnp.arange(outputs) * step[:, None], source[:, None] - 1)
    return jnp.maximum(0, 1 - jnp.abs(position[..., None] - jnp.arange(inputs)))
