"""Transforms images: crop, shift, flip, resize and normalize.

The transforms run in a compiled step on the device, or on the host.

On the device, `transform_train` and `transform_test` take uint8 `[batch, height, width, 3]` to float32
`[batch, size, size, 3]`. On the host, `transform_train_image` and `transform_test_image` follow the same rules for one
Pillow image of any size and return uint8 `[size, size, 3]`, which `normalize` finishes on the device.

Every image has its own uniform numbers. So a result depends on the position of the image in the global batch, and
neither on the number of devices nor on the batch size.
"""

import math
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.data.transforms import color, rand_augment, resizing
from cdl_jax.errors import UserError
from cdl_jax.options import Option, defaults

if TYPE_CHECKING:
    import PIL.Image

OPTIONS: dict[str, Any] = {
    "train": Option(
        "none", "transform of training images", choices=("random_resized_crop", "shift", "pad_crop", "resize", "none")
    ),
    "flip": Option(False, "left-right flip of training images, with probability 1/2"),
    "shift": Option(2, 'largest shift in pixels, for train="shift"'),
    "pad": Option(4, 'pixels added on each side, for train="pad_crop"'),
    "scale": Option(
        (0.08, 1.0), 'lowest and highest fraction of the area, for train="random_resized_crop"', above=0, lengths=(2,)
    ),
    "ratio": Option(
        (3 / 4, 4 / 3), 'lowest and highest width : height, for train="random_resized_crop"', above=0, lengths=(2,)
    ),
    "test": Option("none", "transform of test images", choices=("resize", "resize_center_crop", "none")),
    "resize": Option(256, 'shorter side in pixels, for test="resize_center_crop"', minimum=1),
    "interpolation": Option(
        "bilinear",
        "filter of resizing; random: either of the others for a training image, bicubic for a test image",
        choices=tuple(resizing.FILTERS),
    ),
    **color.OPTIONS,
    "rand_augment": Option(
        "", 'timm\'s policy for training images, such as "rand-m9-mstd0.5-inc1"; images on the host only'
    ),
    "erase": Option(0.0, "probability of noise in a rectangle of a training image", maximum=1),
    # An epoch keeps its length, so it has only some of the images.
    "repeats": Option(1, "times that a training image appears in a row, each time transformed differently", minimum=1),
    "mean": Option(
        (), "mean of each channel, of pixels in [0, 1]; empty: no normalization", item_type=float, lengths=(0, 3)
    ),
    "std": Option(
        (),
        "standard deviation of each channel, of pixels in [0, 1]; empty: no normalization",
        above=0,
        item_type=float,
        lengths=(0, 3),
    ),
}
# Uniform numbers per sample: 10 areas, 10 aspect ratios, 2 positions, flip, filter, color.
NUM_UNIFORMS = 24 + color.NUM_UNIFORMS
_TRIES = 10
_MAX_PIXELS = 2**25  # pixels of a resized image on the host, 128 MiB
_DEFAULTS = defaults(OPTIONS)


def transform_train(images: jax.Array, key: jax.Array, options: Mapping[str, Any], size: int) -> jax.Array:
    """Transforms training images: `options["train"]`, flip, colors, `normalize`.

    random_resized_crop: torchvision's rule, see `crop_box`; the crop is resized to `size`.
    shift: by an integer number of pixels, uniform in [-shift, shift] for each axis, filled with zeros.
    pad_crop: zeros on each side, then a random crop of the original size: equal to a shift by up to `pad`.
    resize: all of the image is resized to a square; its aspect ratio may change.
    none: images have `size` already.
    Shifted images of another size are resized as in `resize`.

    Args:
      images: uint8 `[batch, height, width, 3]`.
      key: one PRNG key for the batch; image i uses `jax.random.split(key, batch)[i]`.
      options: overrides of `OPTIONS`.
      size: side of the result in pixels, static.

    Returns:
      float32 `[batch, size, size, 3]`.

    Raises:
      UserError: the transform is unknown, "none" gets images of another size, or `rand_augment` is set.
    """
    options = {**_DEFAULTS, **options}
    if options["rand_augment"]:
        raise UserError(
            "augment.rand_augment runs on the host, by Pillow: set config.device_data_limit_mb=0, which keeps images "
            "there, or augment.rand_augment=''"
        )
    batch, height, width, _ = images.shape
    kind = options["train"]
    uniforms = jax.vmap(lambda k: jax.random.uniform(k, (NUM_UNIFORMS,)))(jax.random.split(key, batch))
    if kind == "random_resized_crop":
        boxes = jax.vmap(lambda u: jnp.stack(crop_box(u, height, width, options["scale"], options["ratio"], jnp)))
        pixels = resizing.resize_crops(images, boxes(uniforms), (size, size), _filter(options, uniforms))
    elif max_shift := _max_shift(kind, options):
        pad = [(max_shift, max_shift), (max_shift, max_shift), (0, 0)]
        corners = jnp.floor(uniforms[:, 20:22] * (2 * max_shift + 1)).astype(jnp.int32)
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
    """Transforms test images: `options["test"]`, then `normalize`.

    resize: all of the image is resized to a square; its aspect ratio may change.
    resize_center_crop: the shorter side becomes `options["resize"]` pixels, then the central `size` by `size` is cut.
    none: images have `size` already.

    Args:
      images: uint8 `[batch, height, width, 3]`.
      options: overrides of `OPTIONS`.
      size: side of the result in pixels, static.

    Returns:
      float32 `[batch, size, size, 3]`.

    Raises:
      UserError: the transform is unknown, "none" gets images of another size, or the crop exceeds the resized image.
    """
    options = {**_DEFAULTS, **options}
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
    """Scales pixels to [0, 1], then applies `(x - mean) / std` if both are set.

    >>> normalize(np.array([0, 255, 51]), {}).tolist()
    [0.0, 1.0, 0.20000001788139343]

    Args:
      pixels: `[..., 3]` of any dtype, in 0..255.
      options: `mean` and `std`, three numbers each or empty.

    Returns:
      float32 of the same shape.

    Raises:
      UserError: only one of `mean` and `std` is set.
    """
    pixels = jnp.asarray(pixels, jnp.float32) * np.float32(1 / 255)  # as XLA compiles a division by 255
    mean, std = options.get("mean", ()), options.get("std", ())
    if bool(mean) != bool(std):
        raise UserError("augment.mean and augment.std: only one of them is set; set both, or neither")
    return (pixels - jnp.asarray(mean, jnp.float32)) / jnp.asarray(std, jnp.float32) if mean else pixels


def renormalize(images: jax.Array, old: Mapping[str, Any], new: Mapping[str, Any]) -> jax.Array:
    """Replaces the normalization of images by another one.

    Returns the same array if both agree.

    Args:
      images: float32 `[..., 3]`, of `normalize` with the options `old`.
      old: options with which the images were normalized.
      new: options of the result.

    Returns:
      float32 of the same shape.
    """
    (old_mean, old_std), (new_mean, new_std) = (
        (tuple(options.get("mean", ())) or (0.0,) * 3, tuple(options.get("std", ())) or (1.0,) * 3)
        for options in (old, new)
    )
    if (old_mean, old_std) == (new_mean, new_std):
        return images
    return (images * np.float32(old_std) + np.float32(old_mean) - np.float32(new_mean)) / np.float32(new_std)


def transform_train_image(
    image: "PIL.Image.Image", uniforms: np.ndarray, options: Mapping[str, Any], size: int
) -> np.ndarray:
    """Applies `transform_train` without `normalize` to one image on the host.

    Args:
      image: RGB, of any size.
      uniforms: float `[num_uniforms(options)]` in [0, 1).
      options: overrides of `OPTIONS`. `rand_augment` is applied before the other color transforms.
      size: side of the result in pixels.

    Returns:
      uint8 `[size, size, 3]`.

    Raises:
      UserError: the transform is unknown, or "none" gets an image of another size.
    """
    from PIL import ImageOps

    options = {**_DEFAULTS, **options}
    kind = options["train"]
    width, height = image.size
    if kind == "random_resized_crop":
        top, left, crop_height, crop_width = (
            int(v) for v in crop_box(uniforms, height, width, options["scale"], options["ratio"], np)
        )
        image = image.crop((left, top, left + crop_width, top + crop_height))
    elif max_shift := _max_shift(kind, options):
        top, left = np.floor(uniforms[20:22] * (2 * max_shift + 1)).astype(int) - max_shift
        image = image.crop((left, top, left + width, top + height))  # Pillow fills the outside with zeros
    else:
        _check(kind, "train", height, width, size)
    image = resizing.resize_image(image, (size, size), bool(_filter(options, uniforms)))
    if options["flip"] and uniforms[22] < 0.5:
        image = ImageOps.mirror(image)
    if options["rand_augment"]:
        filters = [resizing.pillow_filter(cubic) for cubic in resizing.FILTERS[options["interpolation"]]]
        fill = tuple(min(255, round(255 * level)) for level in options["mean"]) or (128, 128, 128)
        policy = rand_augment.parse(options["rand_augment"])
        image = rand_augment.augment(image, uniforms[NUM_UNIFORMS:], policy, fill, filters)
    if color.is_enabled(options):
        image = color.apply_to_image(image, uniforms[24:NUM_UNIFORMS], options)
    return np.array(image, np.uint8)


def transform_test_image(image: "PIL.Image.Image", options: Mapping[str, Any], size: int) -> np.ndarray:
    """Applies `transform_test` without `normalize` to one image on the host.

    Args:
      image: RGB, of any size.
      options: overrides of `OPTIONS`.
      size: side of the result in pixels.

    Returns:
      uint8 `[size, size, 3]`.

    Raises:
      UserError: as `transform_test`.
    """
    options = {**_DEFAULTS, **options}
    width, height = image.size
    if options["test"] == "resize_center_crop":
        shape, (top, left) = _center(height, width, options["resize"], size)
        if math.prod(shape) > _MAX_PIXELS:  # a narrow image: only the crop is resized
            corner = np.array([left, top]) * (width / shape[1], height / shape[0])
            side = np.array([size * width / shape[1], size * height / shape[0]])
            resampling = resizing.pillow_filter(resizing.is_bicubic(options["interpolation"]))
            return np.array(image.resize((size, size), resampling, (*corner, *corner + side)), np.uint8)
        resized = resizing.resize_image(image, shape, bool(resizing.is_bicubic(options["interpolation"])))
        return np.array(resized.crop((left, top, left + size, top + size)), np.uint8)
    _check(options["test"], "test", height, width, size)
    is_bicubic = bool(resizing.is_bicubic(options["interpolation"]))
    return np.array(resizing.resize_image(image, (size, size), is_bicubic), np.uint8)


def num_uniforms(options: Mapping[str, Any]) -> int:
    """Returns the number of uniform numbers that `transform_train_image` needs.

    >>> num_uniforms({}), num_uniforms({"rand_augment": "rand-m9-n3"})
    (30, 45)
    """
    policy = options.get("rand_augment")
    return NUM_UNIFORMS + (rand_augment.parse(policy).layers * rand_augment.NUM_UNIFORMS if policy else 0)


def stochastic_options(options: Mapping[str, Any]) -> list[str]:
    """Lists the options that make a training image vary, or differ from a test image.

    >>> stochastic_options(defaults(OPTIONS, flip=True))
    ['flip']
    """
    switches = ("flip", *color.OPTIONS, "rand_augment", "erase")
    names = [name for name in switches if options[name]]
    if options["train"] != options["test"] or options["train"] not in ("resize", "none"):
        names.insert(0, "train")
    return names + ["interpolation"] * (options["interpolation"] == "random")


def check(options: Mapping[str, Any]) -> None:
    """Checks that options fit together, as no image would reveal it.

    Raises:
      UserError: two options contradict each other, or `rand_augment` is no policy.
    """
    for name in ("scale", "ratio"):
        if options[name][0] > options[name][1]:
            raise UserError(f"augment.{name}={options[name]} must be two numbers above 0, the smaller first")
    if bool(options["mean"]) != bool(options["std"]):
        raise UserError(f"augment.std={options['std']}: numbers above 0 where augment.mean has any, else empty")
    num_uniforms(options)


def crop_box(
    uniforms: jax.Array | np.ndarray,
    height: int,
    width: int,
    scale: Sequence[float],
    ratio: Sequence[float],
    xp: ModuleType,
) -> tuple[jax.Array | np.ndarray, ...]:
    """Samples the box of torchvision's RandomResizedCrop.

    Ten candidates have an area uniform in `scale` times the image's area and an aspect ratio log-uniform in `ratio`,
    rounded to whole pixels. The first candidate that fits is placed uniformly. If no candidate fits, the box is the
    largest central one whose aspect ratio is in `ratio`.

    Args:
      uniforms: float `[22]` or longer, in [0, 1).
      height: of the image in pixels.
      width: of the image in pixels.
      scale: (low, high), fraction of the area.
      ratio: (low, high), width : height.
      xp: jax.numpy if traced, numpy on the host.

    Returns:
      (top, left, height, width), int32 scalars.
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
    """Returns `resizing.is_bicubic` for uniforms `[..., NUM_UNIFORMS]` or longer."""
    return resizing.is_bicubic(options["interpolation"], uniforms[..., 23])


def _max_shift(kind, options) -> int:
    """Returns the largest shift of a transform in pixels; 0 without a shift."""
    return int({"shift": options["shift"], "pad_crop": options["pad"]}.get(kind, 0))


def _center(height, width, shorter, size):
    """Returns the shape of the resized image and the corner of the crop.

    Source: torchvision's Resize(shorter) and CenterCrop(size).
    """
    crop_height, crop_width = (
        (shorter, shorter * width // height) if height <= width else (shorter * height // width, shorter)
    )
    if size > shorter:
        raise UserError(
            f"augment.resize={shorter}: the central crop of {size} pixels does not fit; set resize to {size} or more"
        )
    return (crop_height, crop_width), (round((crop_height - size) / 2), round((crop_width - size) / 2))


def _check(kind, part, height, width, size):
    if problem := OPTIONS[part].problem(kind):
        raise UserError(f"config.augment.{part}={kind!r}{problem}")
    if kind == "none" and (height, width) != (size, size):
        raise UserError(
            f"augment.{part}='none' leaves {height} x {width} images, but the networks take {size} x {size}; "
            f"set augment.{part}='resize' or another image_size"
        )
