"""Changes of colour: one of grey, solarised and blurred (DeiT III, Touvron et al., 2022), and jitter.

On the host Pillow does them. On the device, inside a compiled step, the same is written out with Pillow's integers:
from the same whole levels and the same uniform numbers both give the same picture, but for a level where Pillow's
fixed-point or float32 arithmetic rounds another way at a tie.
"""

import itertools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.errors import UserError

OPTIONS: dict[str, Any] = {
    "three_augment": False,  # every training picture is made grey, solarised or blurred, each with probability 1/3
    "jitter": 0.0,  # factors in [1 - jitter, 1 + jitter] of brightness, contrast and saturation, in random order
}
NUM_UNIFORMS = 6  # uniform numbers a sample: which of three, radius, 3 factors, their order
_THRESHOLD = 128  # levels from here on are inverted where a picture is solarised
_RADII = (0.1, 2.0)  # of the blur, in pixels
_ORDERS = np.array(list(itertools.permutations(range(3))))


def is_enabled(options: Mapping[str, Any]) -> bool:
    """Whether the options ask for any change."""
    return bool(options["three_augment"] or options["jitter"])


def apply(pixels: jax.Array, uniforms: jax.Array, options: Mapping[str, Any]) -> jax.Array:
    """Training pictures on the device.

    Args:
      pixels: float32 `[batch, height, width, 3]`, whole levels in 0..255.
      uniforms: `[batch, 6]` in [0, 1).

    Returns:
      The same shape, whole levels.
    """

    def one(x, u):
        if options["three_augment"]:
            which = (u[0] * 3).astype(jnp.int32)
            radius = _RADII[0] + u[1] * (_RADII[1] - _RADII[0])
            x = jax.lax.switch(which, (_to_gray, _solarize, lambda x: blur(x, radius)), x)
        if options["jitter"]:
            factors = 1 + options["jitter"] * (2 * u[2:5] - 1)
            order = jnp.asarray(_ORDERS)[(u[5] * len(_ORDERS)).astype(jnp.int32)]
            for step in range(3):
                towards = (jnp.zeros_like, _mean_gray, _to_gray)  # brightness, contrast, saturation
                away_from = jax.lax.switch(order[step], towards, x)
                x = jnp.floor(jnp.clip(away_from + factors[order[step]] * (x - away_from), 0, 255))
        return x

    return jax.vmap(one)(pixels, uniforms)


def apply_to_image(picture, uniforms: np.ndarray, options: Mapping[str, Any]):
    """`apply` of one RGB Pillow picture on the host; `uniforms` `[6]`."""
    from PIL import ImageEnhance, ImageFilter, ImageOps

    u = uniforms
    if options["three_augment"]:
        which = int(u[0] * 3)
        if which == 0:
            picture = picture.convert("L").convert("RGB")
        elif which == 1:
            picture = ImageOps.solarize(picture, _THRESHOLD)
        else:
            picture = picture.filter(ImageFilter.GaussianBlur(float(_RADII[0] + u[1] * (_RADII[1] - _RADII[0]))))
    if options["jitter"]:
        kinds = (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color)
        for kind in _ORDERS[int(u[5] * len(_ORDERS))]:
            picture = kinds[kind](picture).enhance(1 + options["jitter"] * (2 * u[2 + kind] - 1))
    return picture


def blur(x, radius):
    """Pillow's GaussianBlur of `[height, width, 3]` by `radius` up to 2: three passes of a box along each axis.

    The box has a whole number of pixels and a share of one more at each end (Gwosdek et al., 2011); borders repeat.
    """
    variance = radius**2 / 3
    whole = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)
    part = (2 * whole + 1) * (whole * (whole + 1) - 3 * variance) / (6 * (variance - (whole + 1) ** 2))
    inner = 1 / (2 * (whole + part) + 1)
    end = (1 - (2 * whole + 1) * inner) / 2
    # Weights at distances 0, 1 and 2: no radius up to 2 reaches further.
    weights = [inner, jnp.where(whole > 0, inner, end), jnp.where(whole > 0, end, 0.0)]
    for axis in (1, 0):
        for _ in range(3):
            ends = [(2, 2) if a == axis else (0, 0) for a in range(3)]
            padded = jnp.pad(x, ends, mode="edge")
            taps = [jax.lax.slice_in_dim(padded, i, i + x.shape[axis], axis=axis) for i in range(5)]
            x = jnp.floor(weights[0] * taps[2] + sum(weights[i] * (taps[2 - i] + taps[2 + i]) for i in (1, 2)) + 0.5)
    return x


def check(options: Mapping[str, Any]) -> None:
    """Refuses a jitter out of range.

    Raises:
      UserError: names the option.
    """
    if not 0 <= options["jitter"] <= 1:
        raise UserError(f"augment.jitter={options['jitter']} must lie in [0, 1]; 0 leaves colours as they are")


def _to_gray(x):
    weighted = x.astype(jnp.int32) * jnp.array([19595, 38470, 7471])  # ITU-R 601-2 in 65536ths, as Pillow has it
    level = (weighted.sum(axis=-1, keepdims=True) + 2**15) >> 16
    return jnp.broadcast_to(level.astype(x.dtype), x.shape)


def _mean_gray(x):
    levels = _to_gray(x)[..., 0].astype(jnp.int32)
    mean = (2 * levels.sum() + levels.size) // (2 * levels.size)
    return jnp.full_like(x, mean.astype(x.dtype))


def _solarize(x):
    return jnp.where(x < _THRESHOLD, x, 255 - x)
