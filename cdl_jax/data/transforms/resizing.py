"""Resizes images as Pillow does, in a compiled step on the device.

Pillow's bilinear filter is a triangle whose support grows with the scale when shrinking (antialiasing). It is cut at
the edge of the crop and normalized again, as if the image were cropped first. (`jax.image.scale_and_translate` and
`Image.resize(box=...)` have the same filter but cut it at the edge of the image, so pixels from outside the crop bleed
into its border.)

Pillow rounds to uint8 after each of its two passes, and this code never does. So the two differ by at most 1.0/255 plus
float32 rounding. Over photographs, noise and black-and-white noise scaled by 0.1 to 20, the largest difference was
1.002/255, and the mean 0.16/255 to 0.32/255.

Pillow's bicubic filter overshoots. There this code also rounds and clips to 0..255 after each pass, columns first.
Newer versions of Pillow begin with the axis of less work; where that is the other axis, one pixel in ten may differ by
one level. Images that keep their size stay exact.
"""

from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp

if TYPE_CHECKING:
    import PIL.Image

FILTERS = {
    "bilinear": (False,),
    "bicubic": (True,),
    "random": (False, True),
}  # of training images: whether the filter is bicubic


def resize_weights(
    start: jax.Array | int, length: jax.Array | int, inputs: int, outputs: int, cubic: jax.Array | bool = False
) -> jax.Array:
    """Computes Pillow's resampling weights along one axis.

    Row o is a filter of d = `|x - c| / s` at pixel centers x, with c = start + (o + 1/2) length / outputs and s =
    max(1, length / outputs). It is zero outside the crop and scaled to sum 1. The bilinear filter is the triangle
    `max(0, 1 - d)`; the bicubic one is Keys' cubic convolution with a = -1/2.

    >>> (7 * resize_weights(0, 4, 4, 2)).round().tolist()
    [[3.0, 3.0, 1.0, 0.0], [0.0, 1.0, 3.0, 3.0]]

    Args:
      start: first pixel of the crop.
      length: of the crop in pixels.
      inputs: length of the axis in pixels.
      outputs: length of the result in pixels.
      cubic: whether the filter is bicubic, may be traced.

    Returns:
      float32 `[outputs, inputs]`.
    """
    scale = length / outputs
    centers = (jnp.arange(outputs) + 0.5) * scale
    pixels = jnp.arange(inputs) - start  # relative to the crop: small numbers keep float32 exact
    distance = jnp.abs(pixels[None, :] + 0.5 - centers[:, None])
    d = distance / jnp.maximum(1.0, scale)
    weights = jnp.maximum(0.0, 1.0 - d)
    if cubic is not False:
        near, far = ((1.5 * d - 2.5) * d) * d + 1, ((2.5 - 0.5 * d) * d - 4) * d + 2
        weights = jnp.where(cubic, jnp.where(d < 1, near, jnp.where(d < 2, far, 0.0)), weights)
    weights = jnp.where((pixels >= 0) & (pixels < length), weights, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def resize_crops(images: jax.Array, boxes: jax.Array, shape: tuple[int, int], cubic: jax.Array | bool) -> jax.Array:
    """Crops a box of each image and resizes it.

    Args:
      images: uint8 `[batch, height, width, 3]`.
      boxes: int32 `[batch, 4]`, (top, left, height, width) in pixels.
      shape: (height, width) of the result.
      cubic: whether the filter is bicubic; bool, or bool `[batch]` for each image.

    Returns:
      float32 `[batch, *shape, 3]`, in 0..255.
    """
    _, height, width, _ = images.shape
    has_own_filters = isinstance(cubic, jax.Array)

    def weights_along(axis, inputs):
        starts, lengths = boxes[:, axis], boxes[:, axis + 2]
        if has_own_filters:
            return jax.vmap(lambda a, n, c: resize_weights(a, n, inputs, shape[axis], c))(starts, lengths, cubic)
        return jax.vmap(lambda a, n: resize_weights(a, n, inputs, shape[axis], cubic))(starts, lengths)

    rows, columns = weights_along(0, height), weights_along(1, width)
    return _apply(images, rows, columns, rounded=cubic is not False)


def resize(
    images: jax.Array,
    shape: tuple[int, int],
    cubic: jax.Array | bool,
    corner: tuple[int, int] = (0, 0),
    crop: tuple[int, int] | None = None,
) -> jax.Array:
    """Resizes images to a shape, then crops a rectangle.

    Returns the same array if nothing changes.

    Args:
      images: `[batch, height, width, 3]`.
      shape: (height, width) after resizing.
      cubic: as in `resize_crops`.
      corner: (top, left) of the crop in the resized image.
      crop: (height, width) of the crop; None: all of the resized image.

    Returns:
      float32 `[batch, *crop, 3]`, in 0..255.
    """
    _, height, width, _ = images.shape
    crop = crop or shape
    if (height, width) == shape == crop:
        return images
    weights_along = resize_weights
    if isinstance(cubic, jax.Array):
        weights_along = jax.vmap(resize_weights, in_axes=(None, None, None, None, 0))
    rows = weights_along(0, height, height, shape[0], cubic)[..., corner[0] : corner[0] + crop[0], :]
    columns = weights_along(0, width, width, shape[1], cubic)[..., corner[1] : corner[1] + crop[1], :]
    return _apply(images, rows, columns, rounded=cubic is not False)


def _apply(images, rows, columns, rounded):
    """Multiplies images by weights of rows and columns.

    Args:
      images: `[batch, in_height, in_width, 3]`.
      rows: `[height, in_height]`, or with an axis of the batch in front.
      columns: `[width, in_width]`, likewise.
      rounded: whether to round to integer levels after each pass, columns first.
    """
    row_axes, column_axes = ("boh", "bpw") if rows.ndim == 3 else ("oh", "pw")

    def multiply(pattern, weights, pixels):
        # Full precision: a GPU would otherwise multiply in TF32, whose 10 bits are coarser than the tolerance above.
        return jnp.einsum(pattern, weights, pixels, precision=jax.lax.Precision.HIGHEST)

    pixels = images.astype(jnp.float32)
    if not rounded:
        pixels = multiply(f"{row_axes},bhwc->bowc", rows, pixels)
        return multiply(f"{column_axes},bowc->bopc", columns, pixels)
    pixels = jnp.clip(jnp.floor(multiply(f"{column_axes},bhwc->bhpc", columns, pixels) + 0.5), 0, 255)
    return jnp.clip(jnp.floor(multiply(f"{row_axes},bhpc->bopc", rows, pixels) + 0.5), 0, 255)


def is_bicubic(interpolation: str, uniform: jax.Array | float | None = None) -> jax.Array | bool:
    """Returns whether resizing is bicubic.

    >>> is_bicubic("bilinear"), is_bicubic("random", uniform=0.7), is_bicubic("random")
    (False, False, True)

    Args:
      interpolation: a key of `FILTERS`.
      uniform: in [0, 1), draws the filter of "random"; None: a test image, which is bicubic then.
    """
    if interpolation == "random":
        return True if uniform is None else uniform < 0.5
    return interpolation == "bicubic"


def pillow_filter(cubic: bool) -> Any:
    """Returns Pillow's constant of the bicubic or bilinear filter."""
    from PIL import Image

    return Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR


def resize_image(image: "PIL.Image.Image", shape: tuple[int, int], cubic: bool) -> "PIL.Image.Image":
    """Resizes a Pillow image to (height, width)."""
    return image.resize((shape[1], shape[0]), pillow_filter(cubic))
