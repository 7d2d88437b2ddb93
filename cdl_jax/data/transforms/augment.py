"""Picture transforms: crop, shift, flip, resize and normalise, on the device inside a compiled step or on the host.

On the device, `transform_train` and `transform_test` take uint8 `[batch, height, width, 3]` to float32
`[batch, size, size, 3]`. On the host, `transform_train_image` and `transform_test_image` follow the same rules for one
Pillow image of any size and return uint8 `[size, size, 3]`, which `normalize` finishes on the device.

Every sample draws from its own uniform numbers, so a result depends on the sample's place in the global batch and on
nothing else: neither on the number of devices nor on the batch size.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.data.transforms import color, rand_augment, resizing
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
    "interpolation": "bilinear",  # or "bicubic"; or "random": either for a training picture, "bicubic" for a test
    **color.OPTIONS,
    "rand_augment": "",  # timm's policy for training pictures, as "rand-m9-mstd0.5-inc1"; on the host alone
    "erase": 0.0,  # probability of noise in a rectangle of a training picture
    # Every training picture comes so many times in a row, each time changed otherwise. Epochs stay as long as they
    # were, so that one of them sees but a part of the pictures.
    "repeats": 1,
    "mean": (),  # a channel each, of pixels in [0, 1]; empty: do not normalise
    "std": (),
}
# Uniform numbers per sample: 10 areas, 10 aspect ratios, 2 positions, flip, filter, color.
NUM_UNIFORMS = 24 + color.NUM_UNIFORMS
_TRIES = 10
_LARGEST = 2**25  # pixels of a resized image on the host, 128 MiB
_KINDS = {
    "train": ("random_resized_crop", "shift", "pad_crop", "resize", "none"),
    "test": ("resize", "resize_center_crop", "none"),
}


def transform_train(images: jax.Array, key: jax.Array, options: Mapping[str, Any], size: int) -> jax.Array:
    """Training pictures: the transform `options["train"]`, then a flip, then `color.apply`, then `normalize`.

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
      UserError: an unknown transform, "none" for pictures of another size, or `rand_augment`, which needs the host.
    """
    options = {**OPTIONS, **options}
    if options["rand_augment"]:
        raise UserError(
            "augment.rand_augment is Pillow's work on the host: set config.resident_limit_mb=0, which leaves pictures "
            "there, or augment.rand_augment=''"
        )
    batch, height, width, _ = images.shape
    kind = options["train"]
    uniforms = jax.vmap(lambda k: jax.random.uniform(k, (NUM_UNIFORMS,)))(jax.random.split(key, batch))
    if kind == "random_resized_crop":
        pick = jax.vmap(lambda u: jnp.stack(crop_box(u, height, width, options["scale"], options["ratio"], jnp)))
        pixels = resizing.resize_crops(images, pick(uniforms), (size, size), _filter(options, uniforms))
    elif reach := _max_shift(kind, options):
        pad = [(reach, reach), (reach, reach), (0, 0)]
        corners = jnp.floor(uniforms[:, 20:22] * (2 * reach + 1)).astype(jnp.int32)
        pixels = jax.vmap(
            lambda image, corner: jax.lax.dynamic_slice(jnp.pad(image, pad), (corner[0], corner[1], 0), image.shape)
        )(images, corners)
        pixels = resizing.resize(pixels, (size, size), _filter(options, uniforms))
    else:
        _check(kind, "train", height, width, size)
        pixels = resizing.resize(images, (size, size), _filter(options, uniforms))
    if options["flip"]:
        pixels = jnp.where((uniforms[:, 22] < 0.5)[:, None, None, None], pixels[:, :, ::-1], pixels)
    if color.is_enabled(options):
        pixels = color.apply(jnp.floor(pixels.astype(jnp.float32) + 0.5), uniforms[:, 24:], options)
    return normalize(pixels, options)


def transform_test(images: jax.Array, options: Mapping[str, Any], size: int) -> jax.Array:
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
        (crop_height, crop_width), (top, left) = _center(height, width, options["resize"], size)
        pixels = resizing.resize(
            images, (crop_height, crop_width), resizing.is_bicubic(options["interpolation"]), (top, left), (size, size)
        )
    else:
        _check(options["test"], "test", height, width, size)
        pixels = resizing.resize(images, (size, size), resizing.is_bicubic(options["interpolation"]))
    return normalize(pixels, options)


def normalize(pixels: jax.Array, options: Mapping[str, Any]) -> jax.Array:
    """Pixels in 0..255, `[..., 3]` of any dtype, to float32 in [0, 1]; then `(x - mean) / std` if options say so."""
    pixels = jnp.asarray(pixels, jnp.float32) * np.float32(1 / 255)  # as XLA compiles a division by 255
    mean, std = options.get("mean", ()), options.get("std", ())
    if bool(mean) != bool(std):
        raise UserError("augment.mean and augment.std: only one of them is set; set both, or neither")
    return (pixels - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32) if mean else pixels


def renormalize(images: jax.Array, old: Mapping[str, Any], new: Mapping[str, Any]) -> jax.Array:
    """What `normalize` has made by the options `old`, as it would be by `new`: the same array where they agree."""
    (old_mean, old_std), (new_mean, new_std) = (
        (tuple(options.get("mean", ())) or (0.0,) * 3, tuple(options.get("std", ())) or (1.0,) * 3)
        for options in (old, new)
    )
    if (old_mean, old_std) == (new_mean, new_std):
        return images
    return (images * np.float32(old_std) + np.float32(old_mean) - np.float32(new_mean)) / np.float32(new_std)


def transform_train_image(picture, uniforms: np.ndarray, options: Mapping[str, Any], size: int) -> np.ndarray:
    """Transforms an RGB Pillow image for training, without `normalize`: uint8 `[size, size, 3]`.

    uniforms: `[num_uniforms(options)]` in [0, 1). `options["rand_augment"]` is applied before the other colors.
    """
    from PIL import ImageOps

    options = {**OPTIONS, **options}
    kind = options["train"]
    width, height = picture.size
    if kind == "random_resized_crop":
        top, left, crop_height, crop_width = (
            int(v) for v in crop_box(uniforms, height, width, options["scale"], options["ratio"], np)
        )
        picture = picture.crop((left, top, left + crop_width, top + crop_height))
    elif reach := _max_shift(kind, options):
        top, left = np.floor(uniforms[20:22] * (2 * reach + 1)).astype(int) - reach
        picture = picture.crop((left, top, left + width, top + height))  # Pillow fills what lies outside with zeros
    else:
        _check(kind, "train", height, width, size)
    picture = resizing.resize_image(picture, (size, size), bool(_filter(options, uniforms)))
    if options["flip"] and uniforms[22] < 0.5:
        picture = ImageOps.mirror(picture)
    if options["rand_augment"]:
        filters = [resizing.pillow_filter(cubic) for cubic in resizing.FILTERS[options["interpolation"]]]
        fill = tuple(min(255, round(255 * level)) for level in options["mean"]) or (128, 128, 128)
        policy = rand_augment.parse(options["rand_augment"])
        picture = rand_augment.augment(picture, uniforms[NUM_UNIFORMS:], policy, fill, filters)
    if color.is_enabled(options):
        picture = color.apply_to_image(picture, uniforms[24:NUM_UNIFORMS], options)
    return np.array(picture, np.uint8)


def transform_test_image(picture, options: Mapping[str, Any], size: int) -> np.ndarray:
    """`transform_test` on the host, without `normalize`: an RGB Pillow picture to uint8 `[size, size, 3]`."""
    options = {**OPTIONS, **options}
    width, height = picture.size
    if options["test"] == "resize_center_crop":
        shape, (top, left) = _center(height, width, options["resize"], size)
        if math.prod(shape) > _LARGEST:  # a narrow image: only what the crop shows is resized
            corner = np.array([left, top]) * (width / shape[1], height / shape[0])
            side = np.array([size * width / shape[1], size * height / shape[0]])
            chosen = resizing.pillow_filter(resizing.is_bicubic(options["interpolation"]))
            return np.array(picture.resize((size, size), chosen, (*corner, *corner + side)), np.uint8)
        resized = resizing.resize_image(picture, shape, bool(resizing.is_bicubic(options["interpolation"])))
        return np.array(resized.crop((left, top, left + size, top + size)), np.uint8)
    _check(options["test"], "test", height, width, size)
    is_bicubic = bool(resizing.is_bicubic(options["interpolation"]))
    return np.array(resizing.resize_image(picture, (size, size), is_bicubic), np.uint8)


def num_uniforms(options: Mapping[str, Any]) -> int:
    """How many uniform numbers `transform_train_image` needs."""
    policy = options.get("rand_augment")
    return NUM_UNIFORMS + (rand_augment.parse(policy).layers * rand_augment.NUM_UNIFORMS if policy else 0)


def stochastic_options(options: Mapping[str, Any]) -> list[str]:
    """The options for which a training picture is not the same each time, or not as it would be tested."""
    switches = ("flip", *color.OPTIONS, "rand_augment", "erase")
    found = [name for name in switches if options[name]]
    if options["train"] != options["test"] or options["train"] not in ("resize", "none"):
        found.insert(0, "train")
    return found + ["interpolation"] * (options["interpolation"] == "random")


def check(options: Mapping[str, Any]) -> None:
    """Refuses values that no picture could tell of.

    Raises:
      UserError: names the option and its range.
    """
    if options["interpolation"] not in resizing.FILTERS:
        raise UserError(f"augment.interpolation={options['interpolation']!r}: use one of {', '.join(resizing.FILTERS)}")
    if not 0 <= options["erase"] <= 1:
        raise UserError(f"augment.erase={options['erase']} is a probability: set it within [0, 1]")
    if options["repeats"] < 1:
        raise UserError(f"augment.repeats={options['repeats']} must be at least 1")
    for part in _KINDS:
        _check_kind(options[part], part)
    for name in ("scale", "ratio"):
        limits = options[name]
        if not _numbers(limits, 2) or not 0 < limits[0] <= limits[1]:
            raise UserError(f"augment.{name}={limits} must be two numbers above 0, the smaller first")
    for name in ("mean", "std"):
        if len(options[name]) and not _numbers(options[name], 3):
            raise UserError(f"augment.{name}={options[name]} must be empty, or a number for each of three channels")
    if bool(options["mean"]) != bool(options["std"]) or 0 in options["std"]:
        raise UserError(f"augment.std={options['std']}: numbers above 0 where augment.mean has any, else empty")
    if options["resize"] < 1:
        raise UserError(f"augment.resize={options['resize']} must be at least 1")
    color.check(options)
    num_uniforms(options)


def _numbers(values, count):
    return len(values) == count and all(type(value) in (int, float) for value in values)


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
    crop_height, crop_width = xp.round(xp.sqrt(area / aspect)), xp.round(xp.sqrt(area * aspect))
    fits = (crop_height > 0) & (crop_height <= height) & (crop_width > 0) & (crop_width <= width)
    fallback_height = min(height, round(width / ratio[0]))
    fallback_width = min(width, round(height * ratio[1]))
    first = xp.argmax(fits)
    crop_height = xp.where(xp.any(fits), crop_height[first], fallback_height)
    crop_width = xp.where(xp.any(fits), crop_width[first], fallback_width)
    # float32 may round u * n up to n although u < 1
    top = xp.where(
        xp.any(fits),
        xp.minimum(uniforms[20] * (height - crop_height + 1), height - crop_height),
        (height - crop_height) // 2,
    )
    left = xp.where(
        xp.any(fits), xp.minimum(uniforms[21] * (width - crop_width + 1), width - crop_width), (width - crop_width) // 2
    )
    return tuple(v.astype(xp.int32) for v in (top, left, crop_height, crop_width))


def _filter(options, uniforms):
    """See `resizing.is_bicubic`; `uniforms` `[..., NUM_UNIFORMS]` or longer."""
    return resizing.is_bicubic(options["interpolation"], uniforms[..., 23])


def _max_shift(kind, options) -> int:
    """How far the transform shifts, in pixels; 0 where it does not."""
    return int({"shift": options["shift"], "pad_crop": options["pad"]}.get(kind, 0))


def _center(height, width, shorter, size):
    """torchvision's Resize(shorter) and CenterCrop(size): the shape of the resized picture and the crop's corner."""
    crop_height, crop_width = (
        (shorter, shorter * width // height) if height <= width else (shorter * height // width, shorter)
    )
    if size > shorter:
        raise UserError(
            f"augment.resize={shorter}: the central crop of {size} pixels does not fit; set resize to {size} or more"
        )
    return (crop_height, crop_width), (round((crop_height - size) / 2), round((crop_width - size) / 2))


def _check_kind(kind, part):
    if kind not in _KINDS[part]:
        known = ", ".join(_KINDS[part])
        raise UserError(f"augment.{part}={kind!r}: no such transform of pictures; use one of {known}")


def _check(kind, part, height, width, size):
    _check_kind(kind, part)
    if kind == "none" and (height, width) != (size, size):
        raise UserError(
            f"augment.{part}='none' leaves {height} x {width} pictures, but the networks take {size} x {size}; "
            f"set augment.{part}='resize' or another image_size"
        )
