"""Resizes, flips and crops images with boxes on the host.

The transforms are those of ViDT's training and evaluation.

Pixels are resized by Pillow's bilinear filter with antialiasing. The random numbers of an image are drawn before it is
decoded, from its size alone, so all processes of a run compute the sizes of a batch without its pixels.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.data.detection.coco_files import Targets, has_extent
from cdl_jax.errors import UserError
from cdl_jax.options import Option

if TYPE_CHECKING:
    import PIL.Image

OPTIONS: dict[str, Any] = {
    "flip": Option(0.5, "probability of a left-right flip of a training image", maximum=1),
    "crop": Option(0.5, "probability that a training image is cropped between two resizes", maximum=1),
    "scales": Option(
        tuple(range(480, 801, 16)),
        "shorter sides of training images in pixels; empty: the size of the file",
        minimum=16,
    ),
    "max_size": Option(1333, "longest side of a training image in pixels; 0: no limit"),
    "first_scales": Option((400, 500, 600), "shorter sides before the crop in pixels", minimum=16, item_type=int),
    "crop_range": Option((384, 600), "smallest and largest side of the crop in pixels", minimum=16, lengths=(2,)),
    "eval_size": Option(800, "shorter side in evaluation in pixels; 0: the size of the file"),
    "eval_max_size": Option(0, "longest side in evaluation in pixels; 0: eval_size * 1333 // 800"),
    "mean": Option((0.485, 0.456, 0.406), "of red, green and blue in [0, 1]", lengths=(3,)),
    "std": Option((0.229, 0.224, 0.225), "standard deviation, likewise", above=0, lengths=(3,)),
}
MULTIPLE = 16  # pixels; resized sides are rounded down to multiples

Size = tuple[int, int]  # (height, width) in pixels


@dataclass(frozen=True)
class Draws:
    """The random choices for one training image.

    flip: whether to flip it left-right.
    short_side: of the last resize, pixels; 0: the size of the file.
    crop: None, or the crop before the last resize.
    """

    flip: bool
    short_side: int
    crop: "CropDraws | None" = None


@dataclass(frozen=True)
class CropDraws:
    """The random choices for a crop, in pixels.

    first_short_side: of the resize before the crop.
    top, left, height, width: of the crop in the resized image.
    """

    first_short_side: int
    top: int
    left: int
    height: int
    width: int


def draw(rng: np.random.Generator, size: Size, options: Mapping[str, Any]) -> Draws:
    """Draws the choices for one training image.

    The order of draws is that of the authors' code: flip, branch, first scale, width, height, top, left, scale.

    Args:
      rng: generator of this image and epoch.
      size: of the file.
      options: of `OPTIONS`.
    """
    flip = bool(rng.random() < options["flip"])
    is_plain = bool(rng.random() < 1 - options["crop"])
    crop = None if is_plain else _draw_crop(rng, size, options)
    return Draws(flip, int(rng.choice(options["scales"])) if options["scales"] else 0, crop)


def _draw_crop(rng, size, options):
    first = int(rng.choice(options["first_scales"]))
    full_height, full_width = resized_size(size, first)
    low, high = options["crop_range"]
    width = int(rng.integers(low, min(full_width, high), endpoint=True))
    height = int(rng.integers(low, min(full_height, high), endpoint=True))
    if (height, width) == (full_height, full_width):
        return CropDraws(first, 0, 0, height, width)
    top = int(rng.integers(0, full_height - height, endpoint=True))
    left = int(rng.integers(0, full_width - width, endpoint=True))
    return CropDraws(first, top, left, height, width)


def resized_size(size: Size, short: int, cap: int = 0) -> Size:
    """Returns the size after a resize.

    The shorter side becomes `short`, or less where the longer side would exceed `cap`. Then both sides are rounded down
    to multiples of 16, so the aspect ratio changes slightly.

    >>> resized_size((480, 640), 800, 1333), resized_size((480, 640), 500)
    ((800, 1056), (496, 656))

    Args:
      size: (height, width) before.
      short: shorter side in pixels; 0: the size stays, except for the rounding.
      cap: longest side in pixels; 0: no limit.
    """
    height, width = size
    low, high = min(size), max(size)
    if cap and high / low * short > cap:
        short = round(cap * low / high)
    if short and low != short:
        if width < height:
            height, width = int(short * height / width), short
        else:
            height, width = short, int(short * width / height)
    return height - height % MULTIPLE, width - width % MULTIPLE


def train_size(size: Size, draws: Draws, options: Mapping[str, Any]) -> Size:
    """Returns the size of a training image after its transform.

    Args:
      size: of the file.
      draws: of `draw`.
      options: of `OPTIONS`.
    """
    before = (draws.crop.height, draws.crop.width) if draws.crop else size
    return resized_size(before, draws.short_side, options["max_size"])


def evaluation_size(size: Size, options: Mapping[str, Any]) -> Size:
    """Returns the size of an image of a size in evaluation."""
    return resized_size(size, options["eval_size"], options["eval_max_size"] or options["eval_size"] * 1333 // 800)


def transform_train(
    image: "PIL.Image.Image", targets: Targets, draws: Draws, options: Mapping[str, Any]
) -> tuple["PIL.Image.Image", Targets]:
    """Transforms one training image and its targets.

    Boxes that a crop leaves without an extent are dropped; there is no smallest visible area.

    Args:
      image: RGB.
      targets: in pixels of the image.
      draws: of `draw`.
      options: of `OPTIONS`.

    Returns:
      (the image, its targets in pixels of the new image).
    """
    if draws.flip:
        image, targets = _flip(image, targets)
    if draws.crop:
        image, targets = _resize(image, targets, resized_size(image.size[::-1], draws.crop.first_short_side))
        image, targets = _crop(image, targets, draws.crop)
    return _resize(image, targets, resized_size(image.size[::-1], draws.short_side, options["max_size"]))


def transform_label_map(labels: np.ndarray, draws: Draws, options: Mapping[str, Any]) -> np.ndarray:
    """Transforms a label map as `transform_train` does the pixels of its image.

    Labels are those of the nearest pixels.

    Args:
      labels: `[height, width]`, see `segmentations.label_map`.
      draws: of `draw`.
      options: of `OPTIONS`.
    """
    if draws.flip:
        labels = labels[:, ::-1]
    if crop := draws.crop:
        labels = _resize_map(labels, resized_size(labels.shape, crop.first_short_side))
        labels = labels[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]
    return _resize_map(labels, resized_size(labels.shape, draws.short_side, options["max_size"]))


def transform_test(
    image: "PIL.Image.Image", targets: Targets, options: Mapping[str, Any]
) -> tuple["PIL.Image.Image", Targets]:
    """Resizes one image for evaluation, with its targets.

    Args:
      image: RGB.
      targets: in pixels of the image.
      options: of `OPTIONS`.

    Returns:
      (the image, its targets in pixels of the new image).
    """
    return _resize(image, targets, evaluation_size(image.size[::-1], options))


def relative_boxes(boxes: np.ndarray, size: Size) -> np.ndarray:
    """Converts corners in pixels to boxes relative to an image.

    >>> relative_boxes(np.array([[0.0, 0.0, 4.0, 2.0]], np.float32), (8, 8)).tolist()
    [[0.25, 0.125, 0.5, 0.25]]

    Args:
      boxes: float32 `[k, 4]`, (x0, y0, x1, y1).
      size: (height, width) of the image in pixels.

    Returns:
      float32 `[k, 4]`, (center x, center y, width, height).
    """
    low, high = np.split(boxes, 2, axis=1)
    scale = np.array([size[1], size[0]] * 2, np.float32)
    return np.concatenate([(low + high) / 2, high - low], axis=1) / scale


def normalize(images: jax.Array, sizes: jax.Array, options: Mapping[str, Any]) -> jax.Array:
    """Subtracts the mean and divides by the standard deviation; jittable.

    Padding becomes 0.

    Args:
      images: uint8 `[batch, height, width, 3]`, each image at the top left of a canvas.
      sizes: int32 `[batch, 2]`, (height, width) of the images in pixels.
      options: of `OPTIONS`.

    Returns:
      float32 `[batch, height, width, 3]`.
    """
    mean, std = (jnp.asarray(options[key], jnp.float32) for key in ("mean", "std"))
    values = (images.astype(jnp.float32) / 255 - mean) / std
    rows = jnp.arange(images.shape[1]) < sizes[:, :1]
    columns = jnp.arange(images.shape[2]) < sizes[:, 1:]
    return jnp.where(rows[:, :, None, None] & columns[:, None, :, None], values, 0.0)


def check(options: Mapping[str, Any], where: str = "config.augment") -> None:
    """Checks options that depend on each other.

    Args:
      options: of `OPTIONS`.
      where: prefix of the options in messages.

    Raises:
      UserError: a side is shorter than 16 pixels, or a crop can be larger than its image.
    """
    for key in ("max_size", "eval_size", "eval_max_size"):
        if 0 < options[key] < MULTIPLE:
            raise UserError(f"{where}.{key}={options[key]!r} must be 0, or a side in pixels of {MULTIPLE} or more")
    if options["crop"]:
        _check_crop(options, where)


def _check_crop(options, where):
    crop_range, first = options["crop_range"], options["first_scales"]
    if crop_range[0] > crop_range[1]:
        raise UserError(f"{where}.crop_range={crop_range!r} must be the smallest and the largest side in pixels")
    if not first:
        raise UserError(f"{where}.first_scales is empty: give the shorter sides before the crop, or set {where}.crop=0")
    smallest = min(first) - min(first) % MULTIPLE
    if smallest < crop_range[0]:
        raise UserError(
            f"{where}.first_scales={tuple(first)} gives images of {smallest} pixels, smaller than the smallest crop of "
            f"{where}.crop_range={tuple(crop_range)}: raise the scales or lower the crop"
        )


def _flip(image, targets):
    from PIL import Image

    left, top, right, bottom = targets.boxes.T
    width = np.float32(image.width)
    boxes = np.stack([width - right, top, width - left, bottom], axis=1)
    return image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), replace(targets, boxes=boxes)


def _resize(image, targets, size):
    from PIL import Image

    height, width = size
    if (width, height) == image.size:
        return image, targets
    ratio = np.array([width / image.width, height / image.height], np.float32)
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized, replace(targets, boxes=targets.boxes * np.tile(ratio, 2), areas=targets.areas * ratio.prod())


def _crop(image, targets, crop):
    origin = np.array([crop.left, crop.top], np.float32)
    limits = np.array([crop.width, crop.height], np.float32)
    boxes = np.clip(targets.boxes - np.tile(origin, 2), 0, np.tile(limits, 2))
    areas = (boxes[:, 2:] - boxes[:, :2]).prod(axis=1)
    image = image.crop((crop.left, crop.top, crop.left + crop.width, crop.top + crop.height))
    return image, replace(targets, boxes=boxes, areas=areas).take(has_extent(boxes))


def _resize_map(labels, size):
    """Resizes a label map by nearest neighbors.

    Positions are rounded in float32, as torch does.
    """
    rows, columns = (
        np.floor(np.arange(target, dtype=np.float32) * np.float32(source / target)).astype(int).clip(max=source - 1)
        for source, target in zip(labels.shape, size, strict=True)
    )
    return labels[rows[:, None], columns]
