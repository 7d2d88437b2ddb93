"""Extents, masks, valid ratios and sine positions of a detector's feature maps.

An image of size (H, W) lies top-left in an extent, the padded size that the published program would use: the largest
height and width of its group. The extent lies top-left in a canvas, the static size of the arrays. A padding mask is
True at padding, also outside the extent. Heights come before widths, except in valid ratios.
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import struct

# The patch embedding halves an image twice, each merging once more.
STRIDES = (4, 8, 16, 32, 64)


@struct.dataclass
class Extents:
    """Sizes of a batch's images and the extents in which they lie.

    Attributes:
      sizes: int32 `[batch, 2]`, (height, width) of the images in pixels.
      extents: int32 `[batch, 2]`, (height, width) of the extents in pixels.
    """

    sizes: jax.Array
    extents: jax.Array

    def of_map(self, stride: int) -> jax.Array:
        """Returns the extents of a map, int32 `[batch, 2]`, rounded up at each halving.

        >>> Extents(jnp.array([[60, 50]]), jnp.array([[72, 50]])).of_map(8)
        Array([[9, 7]], dtype=int32)
        """
        return -(-self.extents // stride)

    def inside(self, stride: int, shape: Sequence[int]) -> jax.Array:
        """Returns the positions of a map inside the extents, bool `[batch, *shape]`.

        Args:
          stride: of the map in pixels.
          shape: (height, width) of the map.
        """
        return _rectangle(*(jnp.arange(n) < size for n, size in zip(shape, _columns(self.of_map(stride)), strict=True)))

    def mask(self, stride: int, shape: Sequence[int]) -> jax.Array:
        """Returns the padding mask of a map, bool `[batch, *shape]`.

        The mask of the pixels is resized by nearest neighbors.

        Args:
          stride: of the map in pixels.
          shape: (height, width) of the map.
        """
        return ~_rectangle(*self._unmasked(stride, shape))

    def cross_mask(self, stride: int, shape: Sequence[int], divisor: int) -> jax.Array:
        """Returns the padding mask of the keys of a cross stage, bool `[batch, *shape]`.

        The mask of the pixels is resized twice by nearest neighbors: first to the extents of the patch embedding over
        `divisor`, rounded down, and then to the map.

        Args:
          stride: of the map in pixels.
          shape: (height, width) of the map.
          divisor: 2^(4 - number of cross stages).
        """
        between = jnp.maximum(self.of_map(STRIDES[0]) // divisor, 1)
        indicators = []
        for axis, length in enumerate(shape):
            source = nearest_index(between[:, axis], self.of_map(stride)[:, axis], length)
            pixel = _nearest(source, self.extents[:, axis, None], between[:, axis, None])
            indicators.append(self._is_image(pixel, axis, stride))
        return ~_rectangle(*indicators)

    def valid_ratios(self, stride: int, shape: Sequence[int]) -> jax.Array:
        """Returns the unmasked part of the extents of a map, float32 `[batch, 2]`, (x, y).

        Args:
          stride: of the map in pixels.
          shape: (height, width) of the map.
        """
        counts = jnp.stack([part.sum(axis=1) for part in self._unmasked(stride, shape)], axis=1)
        return (counts / self.of_map(stride))[:, ::-1].astype(jnp.float32)

    def _unmasked(self, stride, shape):
        """Yields whether rows, then whether columns of a map belong to the image.

        The two arrays are bool `[batch, height]` and `[batch, width]`.
        """
        of_map = self.of_map(stride)
        for axis, length in enumerate(shape):
            pixel = nearest_index(self.extents[:, axis], of_map[:, axis], length)
            yield self._is_image(pixel, axis, stride)

    def _is_image(self, pixel, axis, stride):
        """Returns whether positions of a map belong to the image, `[batch, length]`.

        `pixel` `[batch, length]` is the pixel of each position.
        """
        inside = jnp.arange(pixel.shape[1]) < self.of_map(stride)[:, axis, None]
        return inside & (pixel < self.sizes[:, axis, None])


def full_extents(shape: Sequence[int]) -> Extents:
    """Returns the extents of unpadded images `[batch, height, width, channels]`."""
    sizes = jnp.broadcast_to(jnp.array(shape[1:3], jnp.int32), (shape[0], 2))
    return Extents(sizes, sizes)


def nearest_index(source: jax.Array, target: jax.Array, length: int) -> jax.Array:
    """Returns the source position of each target position, by nearest neighbors.

    `min(floor(float32(i) * float32(source / target)), source - 1)`, product and quotient in float32, as in a resize of
    torch.

    Args:
      source: int32 `[batch]`, number of source positions.
      target: int32 `[batch]`, number of target positions.
      length: number of positions to compute; those from `target` on have no meaning.

    Returns:
      int32 `[batch, length]`.

    >>> nearest_index(jnp.array([5]), jnp.array([3]), 3)
    Array([[0, 1, 3]], dtype=int32)
    """
    return _nearest(jnp.arange(length), source[:, None], target[:, None])


def _nearest(position, source, target):
    index = jnp.floor(position.astype(jnp.float32) * rounded_quotient(source, target)).astype(jnp.int32)
    return jnp.clip(index, 0, source - 1)


def rounded_quotient(numerator: jax.Array, denominator: jax.Array) -> jax.Array:
    """Computes the correctly rounded float32 quotient of positive integers below 2^12.

    The division of GPUs errs by up to 2 units in the last place, which changes the floor of an integer.

    >>> float(rounded_quotient(jnp.array(5), jnp.array(4)))
    1.25
    """
    numerator, denominator = numerator.astype(jnp.float32), denominator.astype(jnp.float32)
    return _closest_quotient(numerator / denominator, numerator, denominator)


def _closest_quotient(quotient, numerator, denominator):
    """Returns the float whose product with `denominator` is closest to `numerator`.

    The candidates are the floats within 2 units in the last place of `quotient`.
    """
    below, above = jnp.nextafter(quotient, 0), jnp.nextafter(quotient, jnp.inf)
    candidates = jnp.stack([jnp.nextafter(below, 0), below, quotient, above, jnp.nextafter(above, jnp.inf)])
    # The upper 12 bits, so that both products below are exact.
    high = jax.lax.bitcast_convert_type(candidates, jnp.int32) & ~0xFFF
    high = jax.lax.bitcast_convert_type(high, jnp.float32)
    error = jnp.abs((numerator - high * denominator) - (candidates - high) * denominator)
    return jnp.take_along_axis(candidates, error.argmin(axis=0)[None], axis=0)[0]


def sine_positions(mask: jax.Array, dim: int) -> jax.Array:
    """Computes sine and cosine positions of the unmasked part of a map.

    Args:
      mask: bool `[batch, height, width]`, True at padding.
      dim: number of channels: half of them for rows, half for columns.

    Returns:
      float32 `[batch, height, width, dim]`.

    DETR (Carion et al., 2020), with positions from 0 to 2 pi.
    """
    frequency = 10000.0 ** (2 * (jnp.arange(dim // 2) // 2) / (dim // 2))
    even = jnp.arange(dim // 2) % 2 == 0

    def encode(counts, last):
        angle = (2 * jnp.pi * counts / (last + 1e-6))[..., None] / frequency
        return jnp.where(even, jnp.sin(angle), jnp.cos(angle))

    unmasked = (~mask).astype(jnp.float32)
    rows, columns = unmasked.cumsum(axis=1), unmasked.cumsum(axis=2)
    return jnp.concatenate([encode(rows, rows[:, -1:]), encode(columns, columns[:, :, -1:])], axis=-1)


def _rectangle(rows, columns):
    """Returns the product of indicators of rows and columns.

    Indicators are `[batch, height]` and `[batch, width]`, their product `[batch, height, width]`.
    """
    return rows[:, :, None] & columns[:, None, :]


def _columns(pairs):
    return pairs[:, :1], pairs[:, 1:]
