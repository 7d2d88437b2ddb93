"""Multi-scale deformable attention in plain JAX.

A query samples a few points of each feature map by bilinear interpolation. Two implementations compute the same values
and gradients:
  gather: takes the four neighbors of each point. The gradient to the maps is a scatter-add, which is atomic on GPUs and
    therefore not reproducible bit by bit there.
  dense: multiplies the maps with a matrix of all interpolation weights, queries x positions. It has no scatter.

Deformable DETR (Zhu et al., 2021).
"""

import math
from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdl_jax.models.detection.neck import wide, xavier_dense
from cdl_jax.models.modules import layers

IMPLEMENTATIONS = ("auto", "gather", "dense")
# Positions of all maps together up to which "auto" is "dense": the matrix has a number for each query and position.
# Forward and backward on a CPU core, 2 images, 100 queries, dense against gather: 10 against 14 ms at 340 positions
# (images of 128 x 128), 20 against 15 ms at 1,360 (256 x 256), 40 against 17 ms at 3,060 (384 x 384).
MOST_DENSE_POSITIONS = 512


def choose_implementation(name: str, positions: int) -> str:
    """Returns the implementation for a number of positions of all maps together.

    Args:
      name: one of `IMPLEMENTATIONS`. "auto" is "dense" up to `MOST_DENSE_POSITIONS` positions, else "gather".
      positions: sum of height x width over the maps.

    >>> choose_implementation("auto", 340), choose_implementation("auto", 23205), choose_implementation("dense", 23205)
    ('dense', 'gather', 'dense')
    """
    if name == "auto":
        return "dense" if positions <= MOST_DENSE_POSITIONS else "gather"
    return name


def sample_maps(
    maps: Sequence[jax.Array],
    locations: jax.Array,
    weights: jax.Array,
    extents: jax.Array | None = None,
    implementation: str = "auto",
) -> jax.Array:
    """Computes the weighted sum of bilinear samples of each head.

    Positions outside a map count 0. A location x is at column `x width - 0.5`, where the width is that of the extent.

    Args:
      maps: for each level `[batch, height, width, heads, channels]`; 0 outside the extents.
      locations: float32 `[batch, queries, heads, levels, points, 2]`, (x, y) relative to the extent.
      weights: `[batch, queries, heads, levels, points]`.
      extents: int32 `[batch, levels, 2]`, (height, width). Default None: the sizes of the maps.
      implementation: one of `IMPLEMENTATIONS`, default "auto".

    Returns:
      `[batch, queries, heads * channels]`.
    """
    if extents is None:
        extents = jnp.array([value.shape[1:3] for value in maps])[None]
    pixels = locations * extents[:, None, None, :, None, ::-1].astype(locations.dtype) - 0.5
    positions = sum(math.prod(value.shape[1:3]) for value in maps)
    chosen = choose_implementation(implementation, positions)
    return (_sample_dense if chosen == "dense" else _sample_gather)(maps, pixels, weights)


def _sample_dense(maps, pixels, weights):
    """Samples by the outer product of the interpolation weights of rows and columns."""
    total = 0.0
    for level, value in enumerate(maps):
        batch, height, width, heads, channels = value.shape
        rows = _interpolation(pixels[:, :, :, level, :, 1], height)
        columns = _interpolation(pixels[:, :, :, level, :, 0], width)
        matrix = jnp.einsum("bqhp,bqhpy,bqhpx->bhqyx", weights[:, :, :, level], rows, columns)
        matrix = matrix.reshape(batch, heads, -1, height * width).astype(value.dtype)
        flat = value.reshape(batch, height * width, heads, channels)
        total = total + jnp.einsum("bhqs,bshc->bqhc", matrix, flat, preferred_element_type=wide(flat.dtype))
    return total.reshape(*total.shape[:2], -1).astype(maps[0].dtype)


def _interpolation(pixels, length):
    """Returns the interpolation weights of all rows or columns, `[..., length]`.

    A weight is max(0, 1 - distance).
    """
    # From the floor instead of the distance, so that the gradient at integers is that of "gather".
    floor = jnp.floor(pixels)
    part = (pixels - floor)[..., None]
    offset = jnp.arange(length) - floor[..., None]
    return jnp.where(offset == 0, 1 - part, 0) + jnp.where(offset == 1, part, 0)


def _sample_gather(maps, pixels, weights):
    """Samples by taking four rows of the flattened maps for each point."""
    heads, channels = maps[0].shape[3:]
    batch, queries = pixels.shape[:2]
    flat = jnp.concatenate([value.reshape(batch, -1, heads, channels) for value in maps], axis=1)
    indices, factors, start = [], [], 0
    for level, value in enumerate(maps):
        height, width = value.shape[1:3]
        index, factor = _neighbors(pixels[:, :, :, level], height, width)
        indices.append(index + start)
        factors.append(factor * weights[:, :, :, level, :, None])
        start += height * width
    # [batch, heads, queries * neighbors]
    index = jnp.stack(indices, axis=3).transpose(0, 2, 1, 3, 4, 5).reshape(batch, heads, -1)
    factor = jnp.stack(factors, axis=3).transpose(0, 2, 1, 3, 4, 5).reshape(batch, heads, queries, -1)
    taken = jnp.take_along_axis(flat.transpose(0, 2, 1, 3), index[..., None], axis=2, mode="clip")
    taken = taken.reshape(batch, heads, queries, -1, channels)
    total = jnp.einsum("bhqk,bhqkc->bqhc", factor.astype(taken.dtype), taken, preferred_element_type=wide(flat.dtype))
    return total.reshape(batch, queries, -1).astype(flat.dtype)


def _neighbors(pixels, height, width):
    """Returns the flat indices and the weights of the four neighbors of each point.

    Points are `[..., 2]`, indices and weights `[..., 4]` each.
    """
    floor = jnp.floor(pixels)
    part, corner = pixels - floor, floor.astype(jnp.int32)
    indices, weights = [], []
    for down in (0, 1):
        for right in (0, 1):
            x, y = corner[..., 0] + right, corner[..., 1] + down
            weight = (part[..., 0] if right else 1 - part[..., 0]) * (part[..., 1] if down else 1 - part[..., 1])
            is_inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
            weights.append(jnp.where(is_inside, weight, 0))
            indices.append(y.clip(0, height - 1) * width + x.clip(0, width - 1))
    return jnp.stack(indices, axis=-1), jnp.stack(weights, axis=-1)


def sampling_locations(references: jax.Array, offsets: jax.Array, extents: jax.Array) -> jax.Array:
    """Computes where the queries sample.

    `(x, y) + offset / (width, height)` from points (x, y), `(x, y) + offset / points * (w, h) / 2` from boxes.

    Args:
      references: float32 `[batch, queries, levels, 2 or 4]`, points (x, y) or boxes (x, y, w, h) relative to the
        extents.
      offsets: float32 `[batch, queries, heads, levels, points, 2]`.
      extents: int32 `[batch, levels, 2]`, (height, width) of the maps.

    Returns:
      float32 `[batch, queries, heads, levels, points, 2]`.
    """
    center = references[:, :, None, :, None, :2]
    if references.shape[-1] == 2:
        return center + offsets / extents[:, None, None, :, None, ::-1]
    return center + offsets / offsets.shape[-2] * references[:, :, None, :, None, 2:] * 0.5


def offset_bias(heads: int, levels: int, points: int) -> jax.Array:
    """Returns the initial offsets, `[heads * levels * points * 2]`.

    Head k points into the direction `2 pi k / heads`, scaled to a maximum norm of 1; point p is p + 1 times as far.

    >>> offset_bias(4, 1, 2).reshape(4, 2, 2)[0].tolist()
    [[1.0, 0.0], [2.0, 0.0]]
    """
    angle = 2 * jnp.pi * jnp.arange(heads) / heads
    direction = jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=-1)
    direction = direction / jnp.abs(direction).max(axis=-1, keepdims=True)
    scaled = direction[:, None, None] * jnp.arange(1, points + 1)[:, None]
    return jnp.broadcast_to(scaled, (heads, levels, points, 2)).reshape(-1)


class DeformableAttention(nn.Module):
    """Attention from queries to a few points of the maps of several levels.

    Attributes:
      heads: number of attention heads.
      points: number of points for each head and level.
      implementation: one of `IMPLEMENTATIONS`, default "auto".
      dtype: of the linear layers and the samples. Locations and attention weights are computed in float32.
    """

    heads: int
    points: int
    implementation: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        queries: jax.Array,
        references: jax.Array,
        maps: Sequence[jax.Array],
        masks: Sequence[jax.Array],
        extents: jax.Array | None = None,
    ) -> jax.Array:
        """Computes the attention.

        Args:
          queries: `[batch, queries, dim]`.
          references: `[batch, queries, levels, 2 or 4]`, see `sampling_locations`.
          maps: for each level `[batch, height, width, dim]`.
          masks: for each level bool `[batch, height, width]`, True where the values of a map are set to 0, also outside
            the extents.
          extents: int32 `[batch, levels, 2]`, (height, width). Default None: the sizes of the maps.

        Returns:
          `[batch, queries, dim]`.
        """
        dim, levels = queries.shape[-1], len(maps)
        if extents is None:
            extents = jnp.array([value.shape[1:3] for value in maps])[None]
        shape = (*queries.shape[:2], self.heads, levels, self.points)
        zeros = nn.initializers.zeros

        def from_queries(size, name, bias_init=zeros):
            # At least float32: an offset is a number of pixels of the map.
            return layers.Dense(size, dtype=wide(self.dtype), kernel_init=zeros, bias_init=bias_init, name=name)(
                queries
            )

        def first_offsets(*_):
            return offset_bias(self.heads, levels, self.points)

        offsets = from_queries(math.prod(shape[2:]) * 2, "sampling_offsets", first_offsets).reshape(*shape, 2)
        weights = from_queries(math.prod(shape[2:]), "attention_weights").reshape(*shape[:3], -1)
        weights = nn.softmax(weights, axis=-1).reshape(shape)
        locations = sampling_locations(references, offsets, extents)
        self.sow("intermediates", "locations", locations)
        self.sow("intermediates", "weights", weights)
        project = xavier_dense(dim, self.dtype, "value_proj")
        values = [
            jnp.where(mask[..., None], 0, project(value)).reshape(*value.shape[:3], self.heads, -1)
            for value, mask in zip(maps, masks, strict=True)
        ]
        sampled = sample_maps(values, locations, weights, extents, self.implementation)
        return xavier_dense(dim, self.dtype, "output_proj")(sampled)
