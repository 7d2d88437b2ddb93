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
        # Folded in, because `augment.transform_train` draws from the key itself.
        keys = jax.random.split(jax.random.fold_in(key, 1), 2)
        uniforms = jax.random.uniform(keys[0], (2 * _TRIES + 3,))
        top, left, box_height, box_width = sample_rectangle(uniforms[1:], height, width)
        rows, columns = jnp.arange(height)[:, None, None], jnp.arange(width)[:, None]
        inside = (rows >= top) & (rows < top + box_height) & (columns >= left) & (columns < left + box_width)
        return jnp.where(inside & (uniforms[0] < probability), jax.random.normal(keys[1], image.shape), image)

    return jax.vmap(one)(flat, jax.random.split(key, len(flat))).reshape(images.shape)


def sample_rectangle(uniforms: jax.Array, height: int, width: int):
    """`(top, left, height, width)` as int32 from `[22]` uniforms: the first of ten candidates that fits, or nothing."""
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
