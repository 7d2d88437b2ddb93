"""Resizing as Pillow does it, on the device inside a compiled step.

Pillow's bilinear filter is a triangle whose support grows with the scale when shrinking (antialias), cut at the edge of
the crop and normalised again, as if the crop were taken out first. (`jax.image.scale_and_translate` has the same filter
but cuts it at the edge of the picture, and `Image.resize(box=...)` does so too: both let pixels from outside the crop
bleed into its border.) Pillow rounds to uint8 after each of its two passes and this code never does, so the two differ
by at most 1.0/255 plus float32 rounding: over photographs, noise and black-and-white noise scaled by 0.1 to 20, the
largest difference seen was 1.002/255, the mean 0.16/255 to 0.32/255. Pillow's bicubic filter overshoots, so there the
passes are rounded and cut to 0..255 here too, columns first; newer versions of Pillow begin with what is less work, and
where they do so one pixel in ten may differ, by a level. Where nothing is to be resized the pixels stay exact.
"""

import jax
import jax.numpy as jnp

FILTERS = {"bilinear": (False,), "bicubic": (True,), "random": (False, True)}  # whether bicubic; of training pictures


def resize_weights(start, length, inputs: int, outputs: int, cubic=False) -> jax.Array:
    """Pillow's weights from pixels `start` to `start + length` of `inputs` to `outputs`: `[outputs, inputs]` float32.

    Row o is a filter of `|x - c| / s` at pixel centres x, with c = start + (o + 1/2) length / outputs and s = max(1,
    length / outputs), zero outside the crop, scaled to sum 1. The filter is the triangle `max(0, 1 - d)`, or, where
    `cubic` (bool, may be traced), Keys' cubic convolution with a = -1/2.
    """
    scale = length / outputs
    centres = (jnp.arange(outputs) + 0.5) * scale
    pixels = jnp.arange(inputs) - start  # relative to the crop: small numbers keep float32 exact
    distance = jnp.abs(pixels[None, :] + 0.5 - centres[:, None])
    apart = distance / jnp.maximum(1.0, scale)
    weights = jnp.maximum(0.0, 1.0 - apart)
    if cubic is not False:
        near, far = ((1.5 * apart - 2.5) * apart) * apart + 1, ((2.5 - 0.5 * apart) * apart - 4) * apart + 2
        weights = jnp.where(cubic, jnp.where(apart < 1, near, jnp.where(apart < 2, far, 0.0)), weights)
    weights = jnp.where((pixels >= 0) & (pixels < length), weights, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def resize_crops(images, boxes, shape, cubic):
    """The `boxes` int32 `[batch, 4]` (top, left, height, width) of images, resized to `shape`: float32 in 0..255."""
    _, height, width, _ = images.shape
    own = isinstance(cubic, jax.Array)  # a filter for each picture

    def along(axis, inputs):
        starts, lengths = boxes[:, axis], boxes[:, axis + 2]
        if own:
            return jax.vmap(lambda a, n, c: resize_weights(a, n, inputs, shape[axis], c))(starts, lengths, cubic)
        return jax.vmap(lambda a, n: resize_weights(a, n, inputs, shape[axis], cubic))(starts, lengths)

    rows, columns = along(0, height), along(1, width)
    return _apply(images, rows, columns, rounded=cubic is not False)


def resize(images, shape, cubic, corner=(0, 0), crop=None):
    """The rectangle `crop` at `corner` of whole images resized to `shape`; as they are where nothing changes."""
    _, height, width, _ = images.shape
    crop = crop or shape
    if (height, width) == shape == crop:
        return images
    along = resize_weights
    if isinstance(cubic, jax.Array):
        along = jax.vmap(resize_weights, in_axes=(None, None, None, None, 0))
    rows = along(0, height, height, shape[0], cubic)[..., corner[0] : corner[0] + crop[0], :]
    columns = along(0, width, width, shape[1], cubic)[..., corner[1] : corner[1] + crop[1], :]
    return _apply(images, rows, columns, rounded=cubic is not False)


def _apply(images, rows, columns, rounded):
    """Images times the weights `[height, inputs]` and `[width, inputs]`, with or without an axis of the batch.

    rounded: to whole levels after each pass, columns first.
    """
    of_rows, of_columns = ("boh", "bpw") if rows.ndim == 3 else ("oh", "pw")

    def multiply(pattern, weights, pixels):
        # Full precision: a GPU would otherwise multiply in TF32, whose 10 bits are coarser than the tolerance above.
        return jnp.einsum(pattern, weights, pixels, precision=jax.lax.Precision.HIGHEST)

    pixels = images.astype(jnp.float32)
    if not rounded:
        pixels = multiply(f"{of_rows},bhwc->bowc", rows, pixels)
        return multiply(f"{of_columns},bowc->bopc", columns, pixels)
    pixels = jnp.clip(jnp.floor(multiply(f"{of_columns},bhwc->bhpc", columns, pixels) + 0.5), 0, 255)
    return jnp.clip(jnp.floor(multiply(f"{of_rows},bhpc->bopc", rows, pixels) + 0.5), 0, 255)


def is_bicubic(interpolation: str, uniform=None):
    """Whether resizing is bicubic, one of the values of `FILTERS`; for training pictures by a `uniform` number each."""
    if interpolation == "random":
        return True if uniform is None else uniform < 0.5
    return interpolation == "bicubic"


def pillow_filter(cubic):
    """Pillow's name of the filter."""
    from PIL import Image

    return Image.Resampling.BICUBIC if cubic else Image.Resampling.BILINEAR


def resize_image(image, shape, cubic):
    """A Pillow picture resized to `shape`, (height, width)."""
    return image.resize((shape[1], shape[0]), pillow_filter(cubic))
