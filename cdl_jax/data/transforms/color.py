"""Changes the colors of images: grayscale, solarize or blur, and color jitter.

Grayscale, solarize or blur is the choice of DeiT III (Touvron et al., 2022).

On the host Pillow changes the colors. On the device, inside a compiled step, the same operations are written with
Pillow's integers. From the same integer levels and uniform numbers both give the same image. A level may differ where
Pillow's fixed-point or float32 arithmetic rounds a tie the other way.
"""

import itertools
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.options import Option

if TYPE_CHECKING:
    import PIL.Image

OPTIONS: dict[str, Any] = {
    "three_augment": Option(False, "each training image is made gray, solarized or blurred, with probability 1/3 each"),
    "jitter": Option(
        0.0, "factors in [1 - jitter, 1 + jitter] of brightness, contrast and saturation, in random order", maximum=1
    ),
}
NUM_UNIFORMS = 6  # uniform numbers per image: which of three, radius, 3 factors, their order
_THRESHOLD = 128  # solarize inverts the levels from here on
_RADII = (0.1, 2.0)  # of the blur, in pixels
_ORDERS = np.array(list(itertools.permutations(range(3))))


def is_enabled(options: Mapping[str, Any]) -> bool:
    """Returns whether the options change any color."""
    return bool(options["three_augment"] or options["jitter"])


def apply(pixels: jax.Array, uniforms: jax.Array, options: Mapping[str, Any]) -> jax.Array:
    """Changes the colors of training images on the device.

    Args:
      pixels: float32 `[batch, height, width, 3]`, integer levels in 0..255.
      uniforms: float32 `[batch, 6]` in [0, 1).
      options: `OPTIONS`.

    Returns:
      float32 of the same shape, integer levels.
    """

    def apply_to_one(x, u):
        if options["three_augment"]:
            which = (u[0] * 3).astype(jnp.int32)
            radius = _RADII[0] + u[1] * (_RADII[1] - _RADII[0])
            x = jax.lax.switch(which, (_to_gray, _solarize, lambda x: blur(x, radius)), x)
        if options["jitter"]:
            factors = 1 + options["jitter"] * (2 * u[2:5] - 1)
            order = jnp.asarray(_ORDERS)[(u[5] * len(_ORDERS)).astype(jnp.int32)]
            for step in range(3):
                references = (jnp.zeros_like, _mean_gray, _to_gray)  # brightness, contrast, saturation
                reference = jax.lax.switch(order[step], references, x)
                x = jnp.floor(jnp.clip(reference + factors[order[step]] * (x - reference), 0, 255))
        return x

    return jax.vmap(apply_to_one)(pixels, uniforms)


def apply_to_image(image: "PIL.Image.Image", uniforms: np.ndarray, options: Mapping[str, Any]) -> "PIL.Image.Image":
    """Applies `apply` to one RGB image on the host.

    Args:
      image: RGB.
      uniforms: float `[6]` in [0, 1).
      options: `OPTIONS`.
    """
    from PIL import ImageEnhance, ImageFilter, ImageOps

    u = uniforms
    if options["three_augment"]:
        which = int(u[0] * 3)
        if which == 0:
            image = image.convert("L").convert("RGB")
        elif which == 1:
            image = ImageOps.solarize(image, _THRESHOLD)
        else:
            image = image.filter(ImageFilter.GaussianBlur(float(_RADII[0] + u[1] * (_RADII[1] - _RADII[0]))))
    if options["jitter"]:
        kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for kind in _ORDERS[int(u[5] * len(_ORDERS))]:
            image = kinds[kind](image).enhance(1 + options["jitter"] * (2 * u[2 + kind] - 1))
    return image


def blur(x: jax.Array, radius: jax.Array | float) -> jax.Array:
    """Applies Pillow's GaussianBlur: three passes of a box filter along each axis.

    The box covers an integer number of pixels and a fraction of one more at each end; borders are repeated. Source:
    Gwosdek et al., 2011.

    Args:
      x: float32 `[height, width, 3]`, integer levels in 0..255.
      radius: in pixels, up to 2.

    Returns:
      float32 of the same shape, integer levels.
    """
    variance = radius**2 / 3
    reach = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)
    fraction = (2 * reach + 1) * (reach * (reach + 1) - 3 * variance) / (6 * (variance - (reach + 1) ** 2))
    inner = 1 / (2 * (reach + fraction) + 1)
    end = (1 - (2 * reach + 1) * inner) / 2
    # Weights at distances 0, 1 and 2: no radius up to 2 reaches further.
    weights = [inner, jnp.where(reach > 0, inner, end), jnp.where(reach > 0, end, 0.0)]
    for axis in (1, 0):
        for _ in range(3):
            padding = [(2, 2) if a == axis else (0, 0) for a in range(3)]
            padded = jnp.pad(x, padding, mode="edge")
            taps = [jax.lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis) for i in range(5)]
            x = jnp.floor(weights[0] * taps[2] + sum(weights[i] * (taps[2 - i] + taps[2 + i]) for i in (1, 2)) + 0.5)
    return x


def _to_gray(x):
    weighted = x.astype(jnp.int32) * jnp.array([19595, 38470, 7471])  # ITU-R 601-2 in 65536ths, as in Pillow
    level = (weighted.sum(axis=-1, keepdims=True) + 2**15) >> 16
    return jnp.broadcast_to(level.astype(x.dtype), x.shape)


def _mean_gray(x):
    levels = _to_gray(x)[..., 0].astype(jnp.int32)
    mean = (2 * levels.sum() + levels.size) // (2 * levels.size)
    return jnp.full_like(x, mean.astype(x.dtype))


def _solarize(x):
    return jnp.where(x < _THRESHOLD, x, 255 - x)
