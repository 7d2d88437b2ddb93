"""Random erasing (Zhong et al., 2020) as timm's "pixel" mode: a rectangle of normal noise, inside a compiled step."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

_AREA, _RATIO = (0.02, 1 / 3), (0.3, 1 / 0.3)  # of the picture's area; height : width, log-uniform
_TRIES = 10


def erase(images: jax.Array, key: jax.Array, options: Mapping[str, Any]) -> jax.Array:
    """Normalised training pictures, each with probability `options["erase"]` with noise in a rectangle.

    Args:
      images: float32 `[batch, height, width, 3]`, maybe with more axes of pictures in front.
      key: one PRNG key for the batch; sample i uses `jax.random.split(key, batch)[i]`.
    """
    probability = options.get("erase", 0.0)
    if not probability:
        return images
    height, width = images.shape[-3:-1]
    flat = images.reshape(-1, *images.shape[-3:])

    def one(image, key):
        keys = jax.random.split(jax.random.fold_in(key, 1), 2)  # apart from the numbers that `augment.train` draws
        uniforms = jax.random.uniform(keys[0], (2 * _TRIES + 3,))
        top, left, tall, wide = rectangle(uniforms[1:], height, width)
        rows, columns = jnp.arange(height)[:, None, None], jnp.arange(width)[:, None]
        inside = (rows >= top) & (rows < top + tall) & (columns >= left) & (columns < left + wide)
        return jnp.where(inside & (uniforms[0] < probability), jax.random.normal(keys[1], image.shape), image)

    return jax.vmap(one)(flat, jax.random.split(key, len(flat))).reshape(images.shape)


def rectangle(uniforms: jax.Array, height: int, width: int):
    """`(top, left, height, width)` as int32 from `[22]` uniforms: the first of ten candidates that fits, or nothing."""
    area = height * width * (_AREA[0] + uniforms[:_TRIES] * (_AREA[1] - _AREA[0]))
    low, high = np.log(_RATIO[0]), np.log(_RATIO[1])
    aspect = jnp.exp(low + uniforms[_TRIES : 2 * _TRIES] * (high - low))
    tall, wide = jnp.round(jnp.sqrt(area * aspect)), jnp.round(jnp.sqrt(area / aspect))
    fits = (tall < height) & (wide < width)
    first = jnp.argmax(fits)
    tall, wide = (jnp.where(jnp.any(fits), side[first], 0) for side in (tall, wide))
    top = jnp.minimum(jnp.floor(uniforms[2 * _TRIES] * (height - tall + 1)), height - tall)
    left = jnp.minimum(jnp.floor(uniforms[2 * _TRIES + 1] * (width - wide + 1)), width - wide)
    return tuple(v.astype(jnp.int32) for v in (top, left, tall, wide))
