"""Erases a random rectangle of an image, in a compiled step.

Source: Zhong et al., 2020, as timm's "pixel" mode.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_AREA, _RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)  # fraction of the image's area; height : width, log-uniform
_TRIES = 10


def erase(images: jax.Array, key: jax.Array, options: Mapping[str, Any]) -> jax.Array:
    """Replaces a rectangle by normal noise, with probability `options["erase"]`.

    Args:
      images: float32 `[..., height, width, 3]`, normalized.
      key: one PRNG key for the batch; image i uses `jax.random.split(key, batch)[i]`.
      options: with "erase"; 0 by default.

    Returns:
      float32 of the same shape.
    """
    probability = options.get("erase", 0.0)
    if not probability:
        return images
    height, width = images.shape[-3:-1]
    flat = images.reshape(-1, *images.shape[-3:])

    def erase_one(image, key):
        # Folded in, because `augment.transform_train` draws from the key itself.
        keys = jax.random.split(jax.random.fold_in(key, 1), 2)
        uniforms = jax.random.uniform(keys[0], (2 * _TRIES + 3,))
        top, left, box_height, box_width = sample_rectangle(uniforms[1:], height, width)
        rows, columns = jnp.arange(height)[:, None, None], jnp.arange(width)[:, None]
        inside = (rows >= top) & (rows < top + box_height) & (columns >= left) & (columns < left + box_width)
        return jnp.where(inside & (uniforms[0] < probability), jax.random.normal(keys[1], image.shape), image)

    return jax.vmap(erase_one)(flat, jax.random.split(key, len(flat))).reshape(images.shape)


def sample_rectangle(uniforms: jax.Array, height: int, width: int) -> tuple[jax.Array, ...]:
    """Samples the rectangle to erase: the first of ten candidates that fits.

    Args:
      uniforms: float32 `[22]` in [0, 1).
      height: of the image in pixels.
      width: of the image in pixels.

    Returns:
      (top, left, height, width), int32 scalars; height and width are 0 if no candidate fits.
    """
    area = height * width * (_AREA[0] + uniforms[:_TRIES] * (_AREA[1] - _AREA[0]))
    low, high = np.log(_RATIO[0]), np.log(_RATIO[1])
    aspect = jnp.exp(low + uniforms[_TRIES : 2 * _TRIES] * (high - low))
    box_height, box_width = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (box_height < height) & (box_width < width)
    first = jnp.argmax(fits)
    box_height, box_width = (jnp.where(jnp.any(fits), side[first], 0) for side in (box_height, box_width))
    top = jnp.minimum(jnp.floor(uniforms[2 * _TRIES] * (height - box_height + 1)), height - box_height)
    left = jnp.minimum(jnp.floor(uniforms[2 * _TRIES + 1] * (width - box_width + 1)), width - box_width)
    return tuple(v.astype(jnp.int32) for v in (top, left, box_height, box_width))
