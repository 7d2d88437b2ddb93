"""DiffAugment: differentiable augmentation before a discriminator.

Zhao et al., 2020. Each image has its own random numbers. `draw` returns them, and `augment` applies them. Source:
DiffAugment_pytorch.py of mit-han-lab/data-efficient-gans.
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from cdl_jax import plugins
from cdl_jax.errors import UserError

# Part of a policy -> names of its random numbers.
PARTS = {
    "color": ("brightness", "saturation", "contrast"),
    "translation": ("translation_rows", "translation_columns"),
    "cutout": ("cutout_rows", "cutout_columns"),
}
_NUMBERS = tuple(name for names in PARTS.values() for name in names)
_TRANSLATION, _CUTOUT = 1 / 8, 1 / 2  # fractions of the image's side


def parse_policy(policy: str) -> tuple[str, ...]:
    """Returns the parts of a policy in their order.

    >>> parse_policy("translation,cutout"), parse_policy("")
    (('translation', 'cutout'), ())

    Args:
      policy: parts with commas between them: "color", "translation" and "cutout".

    Raises:
      UserError: there is no such part.
    """
    parts = tuple(part.strip() for part in policy.split(",")) if policy.strip() else ()
    for part in parts:
        if part not in PARTS:
            raise UserError(f"DiffAugment policy={policy!r}: no part {part!r}; {plugins.did_you_mean(part, PARTS)}")
    return parts


def draw(key: jax.Array, policy: str, batch: int, height: int, width: int) -> dict[str, jax.Array]:
    """Draws the random numbers of a batch.

    Each kind of numbers has a key of its own, so a policy with more parts does not change those of the others.

    Args:
      key: PRNG key of the batch.
      policy: see `parse_policy`.
      batch: number of images.
      height: of the images in pixels.
      width: of the images in pixels.

    Returns:
      Name -> numbers `[batch]`, for the parts of the policy.

        brightness, saturation, contrast: float32 in [0, 1).
        translation_rows, translation_columns: int32 in [-m, m], with m an eighth of the side, rounded.
        cutout_rows, cutout_columns: int32, the center of the square; from 0 to the side, or to the last pixel if the
          square has an odd side.

    Raises:
      UserError: see `parse_policy`.
    """
    numbers, sides = {}, {"rows": height, "columns": width}
    for name in (name for part in parse_policy(policy) for name in PARTS[part]):
        purpose, (part, _, axis) = jax.random.fold_in(key, _NUMBERS.index(name)), name.partition("_")
        if part == "translation":
            reach = _rounded(sides[axis] * _TRANSLATION)
            numbers[name] = jax.random.randint(purpose, (batch,), -reach, reach + 1)
        elif part == "cutout":
            is_odd = _rounded(sides[axis] * _CUTOUT) % 2
            numbers[name] = jax.random.randint(purpose, (batch,), 0, sides[axis] + 1 - is_odd)
        else:
            numbers[name] = jax.random.uniform(purpose, (batch,))
    return numbers


def augment(images: jax.Array, numbers: Mapping[str, jax.Array], policy: str) -> jax.Array:
    """Augments images with given random numbers.

    Args:
      images: float32 `[batch, height, width, 3]`.
      numbers: of `draw`.
      policy: see `parse_policy`.

    Returns:
      float32 of the same shape. With the policy "" the images themselves.

    Raises:
      UserError: see `parse_policy`.
    """
    functions = {"color": change_color, "translation": translate, "cutout": cut_out}
    for part in parse_policy(policy):
        images = functions[part](images, *(numbers[name] for name in PARTS[part]))
    return images


def change_color(images: jax.Array, brightness: jax.Array, saturation: jax.Array, contrast: jax.Array) -> jax.Array:
    """Changes brightness, then saturation, then contrast.

    Args:
      images: float32 `[batch, height, width, 3]`.
      brightness, saturation, contrast: u of the three functions below, float32 `[batch]` in [0, 1).
    """
    images = change_brightness(images, brightness)
    return change_contrast(change_saturation(images, saturation), contrast)


def change_brightness(images: jax.Array, u: jax.Array) -> jax.Array:
    """Returns `x + u - 1/2`."""
    return images + _per_image(u) - 0.5


def change_saturation(images: jax.Array, u: jax.Array) -> jax.Array:
    """Returns `m + (x - m) 2u`, with m the mean over the channels of a pixel."""
    mean = images.mean(axis=-1, keepdims=True)
    return mean + (images - mean) * 2 * _per_image(u)


def change_contrast(images: jax.Array, u: jax.Array) -> jax.Array:
    """Returns `m + (x - m) (u + 1/2)`, with m the mean over the image."""
    mean = images.mean(axis=(1, 2, 3), keepdims=True)
    return mean + (images - mean) * (_per_image(u) + 0.5)


def translate(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Translates images.

    Pixel [i, j] becomes pixel [i + row, j + column] of the image, and 0 outside of it.

    Args:
      images: float32 `[batch, height, width, channels]`.
      rows: int32 `[batch]`, at most an eighth of the height, rounded.
      columns: int32 `[batch]`, at most an eighth of the width, rounded.
    """
    reach = [_rounded(side * _TRANSLATION) for side in images.shape[1:3]]
    padded = jnp.pad(images, ((0, 0), *((r, r) for r in reach), (0, 0)))

    def window(image, row, column):
        return jax.lax.dynamic_slice(image, (reach[0] + row, reach[1] + column, 0), images.shape[1:])

    return jax.vmap(window)(padded, rows, columns)


def cut_out(images: jax.Array, rows: jax.Array, columns: jax.Array) -> jax.Array:
    """Sets a rectangle of each image to 0.

    Its sides are half of those of the image, rounded. Its parts outside of the image are cut off.

    Args:
      images: float32 `[batch, height, width, channels]`.
      rows: int32 `[batch]`, the center.
      columns: int32 `[batch]`, the center.
    """

    def is_inside(center, side):
        length = _rounded(side * _CUTOUT)
        offset = jnp.arange(side) - (center[:, None] - length // 2)
        return (offset >= 0) & (offset < length)

    height, width = images.shape[1:3]
    mask = is_inside(rows, height)[:, :, None] & is_inside(columns, width)[:, None]
    return jnp.where(mask[..., None], 0.0, images)


def _per_image(u):
    """Reshapes `[batch]` to `[batch, 1, 1, 1]`."""
    return u[:, None, None, None]


def _rounded(length: float) -> int:
    """Rounds a length in pixels, halves up."""
    return int(length + 0.5)
