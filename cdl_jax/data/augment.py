"""Picture transforms: crop, shift, flip, resize and normalise, on the device inside a compiled step or on the host.

On the device, `train` and `test` take uint8 `[batch, height, width, 3]` to float32 `[batch, size, size, 3]`. On the
host, `train_picture` and `test_picture` follow the same rules for one Pillow picture of any size and leave uint8
`[size, size, 3]`, which `normalize` finishes on the device.

Every sample draws from its own 23 uniform numbers, so a result depends on the sample's place in the global batch and on
nothing else: neither on the number of devices nor on the batch size.

Resizing is Pillow's bilinear filter: a triangle whose support grows with the scale when shrinking (antialias), cut at
the edge of the crop and normalised again, as if the crop were taken out first. (`jax.image.scale_and_translate` has
the same filter but cuts it at the edge of the picture, and `Image.resize(box=...)` does so too: both let pixels from
outside the crop bleed into its border.) Pillow rounds to uint8 after each of its two passes and this code never does,
so the two differ by at most 1.0/255 plus float32 rounding: over photographs, noise and black-and-white noise scaled by
0.1 to 20, the largest difference seen was 1.002/255, the mean 0.16/255 to 0.32/255. Where nothing is to be resized the
pixels stay exact.
"""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.errors import UserError

# train: random_resized_crop, shift, pad_crop, resize, none. test: resize, resize_center_crop, none.
OPTIONS: dict[str, Any] = {
    "train": "none",
    "flip": False,  # left-right, with probability 1/2
    "shift": 2,  # pixels, for train="shift"
    "pad": 4,  # pixels on each side, for train="pad_crop"
    "scale": (0.08, 1.0),  # part of the area, for train="random_resized_crop"
    "ratio": (3 / 4, 4 / 3),  # width : height, likewise
    "test": "none",
    "resize": 256,  # shorter side in pixels, for test="resize_center_crop"
    "mean": (),  # a channel each, of pixels in [0, 1]; empty: do not normalise
    "std": (),
}
DRAWS = 23  # uniform numbers a sample: 10 areas, 10 aspect ratios, 2 positions, 1 flip
_TRIES = 10


def train(images: jax.Array, key: jax.Array, options: Mapping[str, Any], size: int) -> jax.Array:
    """Training pictures: the transform `options["train"]`, then a flip, then `normalize`.

    random_resized_crop: torchvision's rule, see `crop_box`; the crop is resized to `size`.
    shift: by a whole number of pixels, uniform in [-shift, shift] for each axis, filled with zeros.
    pad_crop: zeros on each side, then a random crop of the original size: a shift by up to `pad` under its other name.
    resize: the whole picture, squeezed where it is not square.
    none: pictures are of `size` already.
    Shifted pictures of another size are resized as in `resize`.

    Args:
      images: uint8 `[batch, height, width, 3]`.
      key: one PRNG key for the batch; sample i uses `jax.random.split(key, batch)[i]`.
      options: overrides of `OPTIONS`.
      size: side of the result in pixels; static.

    Returns:
      float32 `[batch, size, size, 3]`.

    Raises:
      UserError: an unknown transform, or "none" for pictures of another size.
    """
    options = {**OPTIONS, **options}
    batch, height, width, _ = images.shape
    kind = options["train"]
    uniforms = jax.vmap(lambda k: jax.random.uniform(k, (DRAWS,)))(jax.random.split(key, batch))
    if kind == "random_resized_crop":
        pick = jax.vmap(lambda u: jnp.stack(crop_box(u, height, width, options["scale"], options["ratio"], jnp)))
        pixels = _resize(images, pick(uniforms), (size, size))
    elif reach := _reach(kind, options):
        pad = [(reach, reach), (reach, reach), (0, 0)]
        corners = jnp.floor(uniforms[:, 20:22] * (2 * reach + 1)).astype(jnp.int32)
        pixels = jax.vmap(
            lambda image, corner: jax.lax.dynamic_slice(jnp.pad(image, pad), (corner[0], corner[1], 0), image.shape)
        )(images, corners)
        pixels = _resize_whole(pixels, (size, size))
    else:
        _check(kind, "train", height, width, size)
        pixels = _resize_whole(images, (size, size))
    if options["flip"]:
        pixels = jnp.where((uniforms[:, 22] < 0.5)[:, None, None, None], pixels[:, :, ::-1], pixels)
    return normalize(pixels, options)


def test(images: jax.Array, options: Mapping[str, Any], size: int) -> jax.Array:
    """Test pictures: the transform `options["test"]`, then `normalize`.

    resize: the whole picture, squeezed where it is not square.
    resize_center_crop: the shorter side to `options["resize"]` pixels, then the central `size` by `size`.
    none: pictures are of `size` already.

    Args:
      images: uint8 `[batch, height, width, 3]`.
      options: overrides of `OPTIONS`.
      size: side of the result in pixels; static.

    Returns:
      float32 `[batch, size, size, 3]`.

    Raises:
      UserError: an unknown transform, "none" for pictures of another size, or a crop larger than the resized picture.
    """
    options = {**OPTIONS, **options}
    _, height, width, _ = images.shape
    if options["test"] == "resize_center_crop":
        (tall, wide), (top, left) = _center(height, width, options["resize"], size)
        pixels = _resize_whole(images, (tall, wide), (top, left), (size, size))
    else:
        _check(options["test"], "test", height, width, size)
        pixels = _resize_whole(images, (size, size))
    return normalize(pixels, options)


def normalize(pixels: jax.Array, options: Mapping[str, Any]) -> jax.Array:
    """Pixels in 0..255, `[..., 3]` of any dtype, to float32 in [0, 1]; then `(x - mean) / std` if options say so."""
    pixels = jnp.asarray(pixels, jnp.float32) * np.float32(1 / 255)  # as XLA compiles a division by 255
    mean, std = options.get("mean", ()), options.get("std", ())
    if bool(mean) != bool(std):
        raise UserError("augment.mean and augment.std: only one of them is set; set both, or neither")
    return (pixels - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32) if mean else pixels


def train_picture(picture, uniforms: np.ndarray, options: Mapping[str, Any], size: int) -> np.ndarray:
    """`train` on the host, without `normalize`: an RGB Pillow picture and 23 uniforms to uint8 `[size, size, 3]`."""
    options = {**OPTIONS, **options}
    kind = options["train"]
    width, height = picture.size
    if kind == "random_resized_crop":
        top, left, tall, wide = (
            int(v) for v in crop_box(uniforms, height, width, options["scale"], options["ratio"], np)
        )
        picture = picture.crop((left, top, left + wide, top + tall))
    elif reach := _reach(kind, options):
        top, left = np.floor(uniforms[20:22] * (2 * reach + 1)).astype(int) - reach
        picture = picture.crop((left, top, left + width, top + height))  # Pillow fills what lies outside with zeros
    else:
        _check(kind, "train", height, width, size)
    pixels = _pillow_resize(picture, (size, size))
    return np.ascontiguousarray(pixels[:, ::-1]) if options["flip"] and uniforms[22] < 0.5 else pixels


def test_picture(picture, options: Mapping[str, Any], size: int) -> np.ndarray:
    """`test` on the host, without `normalize`: an RGB Pillow picture to uint8 `[size, size, 3]`."""
    options = {**OPTIONS, **options}
    width, height = picture.size
    if options["test"] == "resize_center_crop":
        shape, (top, left) = _center(height, width, options["resize"], size)
        return np.ascontiguousarray(_pillow_resize(picture, shape)[top : top + size, left : left + size])
    _check(options["test"], "test", height, width, size)
    return _pillow_resize(picture, (size, size))


def crop_box(uniforms, height: int, width: int, scale, ratio, xp) -> tuple:
    """The box of torchvision's RandomResizedCrop, `(top, left, height, width)` as int32 scalars.

    Ten candidates have an area uniform in `scale` times the picture's and an aspect ratio log-uniform in `ratio`,
    rounded to whole pixels; the first that fits is placed uniformly. If none fits: the largest central box whose aspect
    ratio lies in `ratio`.

    Args:
      uniforms: `[22]` or longer, in [0, 1).
      xp: jax.numpy when traced, numpy on the host.
    """
    area = height * width * (scale[0] + uniforms[:_TRIES] * (scale[1] - scale[0]))
    low, high = np.log(ratio[0]), np.log(ratio[1])
    aspect = xp.exp(low + uniforms[_TRIES : 2 * _TRIES] * (high - low))
    tall, wide = xp.round(xp.sqrt(area / aspect)), xp.round(xp.sqrt(area * aspect))
    fits = (tall > 0) & (tall <= height) & (wide > 0) & (wide <= width)
    fallback_tall = min(height, round(width / ratio[0]))
    fallback_wide = min(width, round(height * ratio[1]))
    first = xp.argmax(fits)
    tall = xp.where(xp.any(fits), tall[first], fallback_tall)
    wide = xp.where(xp.any(fits), wide[first], fallback_wide)
    # float32 may round u * n up to n although u < 1
    top = xp.where(xp.any(fits), xp.minimum(uniforms[20] * (height - tall + 1), height - tall), (height - tall) // 2)
    left = xp.where(xp.any(fits), xp.minimum(uniforms[21] * (width - wide + 1), width - wide), (width - wide) // 2)
    return tuple(v.astype(xp.int32) for v in (top, left, tall, wide))


def resize_weights(start, length, inputs: int, outputs: int) -> jax.Array:
    """Pillow's bilinear weights from pixels `start` to `start + length` of `inputs` to `outputs`: `[outputs, inputs]`.

    Row o is the triangle `max(0, 1 - |x - c| / s)` at pixel centres x, with c = start + (o + 1/2) length / outputs and
    s = max(1, length / outputs), zero outside the crop, scaled to sum 1. float32.
    """
    scale = length / outputs
    centres = (jnp.arange(outputs) + 0.5) * scale
    pixels = jnp.arange(inputs) - start  # relative to the crop: small numbers keep float32 exact
    distance = jnp.abs(pixels[None, :] + 0.5 - centres[:, None])
    weights = jnp.maximum(0.0, 1.0 - distance / jnp.maximum(1.0, scale))
    weights = jnp.where((pixels >= 0) & (pixels < length), weights, 0.0)
    return weights / weights.sum(axis=1, keepdims=True)


def _resize(images, boxes, shape):
    """The `boxes` int32 `[batch, 4]` (top, left, height, width) of images, resized to `shape`: float32 in 0..255."""
    _, height, width, _ = images.shape
    rows = jax.vmap(lambda box: resize_weights(box[0], box[2], height, shape[0]))(boxes)
    columns = jax.vmap(lambda box: resize_weights(box[1], box[3], width, shape[1]))(boxes)
    return _apply("boh,bhwc->bowc", "bpw,bowc->bopc", images, rows, columns)


def _resize_whole(images, shape, corner=(0, 0), crop=None):
    """The rectangle `crop` at `corner` of whole images resized to `shape`; as they are where nothing changes."""
    _, height, width, _ = images.shape
    crop = crop or shape
    if (height, width) == shape == crop:
        return images
    rows = resize_weights(0, height, height, shape[0])[corner[0] : corner[0] + crop[0]]
    columns = resize_weights(0, width, width, shape[1])[corner[1] : corner[1] + crop[1]]
    return _apply("oh,bhwc->bowc", "pw,bowc->bopc", images, rows, columns)


def _apply(by_rows, by_columns, images, rows, columns):
    # Full precision: a GPU would otherwise multiply in TF32, whose 10 bits are coarser than the tolerance above.
    full = jax.lax.Precision.HIGHEST
    pixels = jnp.einsum(by_rows, rows, images.astype(jnp.float32), precision=full)
    return jnp.einsum(by_columns, columns, pixels, precision=full)


def _pillow_resize(picture, shape) -> np.ndarray:
    from PIL import Image

    return np.array(picture.resize((shape[1], shape[0]), Image.Resampling.BILINEAR), np.uint8)


def _reach(kind, options) -> int:
    """How far the transform shifts, in pixels; 0 where it does not."""
    return int({"shift": options["shift"], "pad_crop": options["pad"]}.get(kind, 0))


def _center(height, width, shorter, size):
    """torchvision's Resize(shorter) and CenterCrop(size): the shape of the resized picture and the crop's corner."""
    tall, wide = (shorter, shorter * width // height) if height <= width else (shorter * height // width, shorter)
    if size > shorter:
        raise UserError(
            f"augment.resize={shorter}: the central crop of {size} pixels does not fit; set resize to {size} or more"
        )
    return (tall, wide), (round((tall - size) / 2), round((wide - size) / 2))


def _check(kind, part, height, width, size):
    known = {
        "train": ("random_resized_crop", "shift", "pad_crop", "resize", "none"),
        "test": ("resize", "resize_center_crop", "none"),
    }
    if kind not in known[part]:
        raise UserError(f"augment.{part}={kind!r}: no such transform of pictures; use one of {', '.join(known[part])}")
    if kind == "none" and (height, width) != (size, size):
        raise UserError(
            f"augment.{part}='none' leaves {height} x {width} pictures, but the networks take {size} x {size}; "
            f"set augment.{part}='resize' or another image_size"
        )
