"""Orders images into batches, and chooses the extents and the canvas of a batch.

A batch consists of groups. A group is what one device of the authors' code has in a step: its extent, the largest
height and width of its images, takes part in window attention, normalization and distillation. A canvas is the array
that holds all images of a batch. Its shape has no influence on results, and each canvas compiles one program.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cdl_jax.data.detection import transforms
from cdl_jax.data.detection.coco_files import DetectionSet
from cdl_jax.data.detection.transforms import Size
from cdl_jax.data.sampling import rng_for
from cdl_jax.errors import UserError
from cdl_jax.options import Option

OPTIONS: dict[str, Any] = {
    "canvases": Option(
        ((832, 1344), (1344, 832), (640, 1088), (1088, 640), (832, 832), (1344, 1344)),
        "(height, width) in pixels of the arrays that hold the images of a batch, in multiples of 64; empty: one that "
        "holds all images",
    ),
    "group_size": Option(2, "images of a group of a batch: those of one device in the authors' code", minimum=1),
}
MULTIPLE = 64  # pixels; feature maps of a canvas then have even sides at every stage


def epoch_rows(n: int, groups: int, group_size: int, *, seed: int, purpose: tuple[int, ...]) -> np.ndarray:
    """Shuffles the images of one epoch into batches of groups.

    The permutation is padded by repetition to a multiple of `groups`. Group r receives positions r, r + groups, ... and
    the incomplete last batch is dropped, as with one process of the authors' code for each group.

    >>> epoch_rows(5, groups=2, group_size=1, seed=0, purpose=()).shape
    (3, 2)

    Args:
      n: number of images.
      groups: groups in a batch.
      group_size: images in a group.
      seed: of the run.
      purpose: non-negative counters, such as (task, epoch).

    Returns:
      int32 `[steps, groups * group_size]`, rows of the set, group by group.

    Raises:
      UserError: the images do not fill one batch.
    """
    share = -(-n // groups)
    steps = share // group_size
    if not steps:
        raise UserError(
            f"batches of {groups} groups of {group_size} images are larger than the {n} training images: use fewer "
            "groups or smaller ones"
        )
    order = np.resize(rng_for(seed, *purpose).permutation(n), share * groups).reshape(share, groups)
    by_step = order[: steps * group_size].reshape(steps, group_size, groups)
    return by_step.transpose(0, 2, 1).reshape(steps, groups * group_size).astype(np.int32)


def evaluation_rows(n: int, groups: int, group_size: int, processes: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Orders every image for evaluation, with neighbors in one group.

    >>> rows, weight = evaluation_rows(5, groups=2, group_size=2)
    >>> rows.tolist(), weight.astype(int).tolist()
    ([[0, 1, 2, 3], [4, -1, -1, -1]], [[1, 1, 1, 1], [1, 0, 0, 0]])

    Args:
      n: number of images.
      groups: groups in a batch; has no influence on the groups' images.
      group_size: images in a group.
      processes: of the authors' evaluation: process r groups images r, r + processes, ... Padding by repetition fills
        the last groups; the repetitions have weight 0.

    Returns:
      (rows int32, weight float32), both `[steps, groups * group_size]`; row -1 is no image.
    """
    positions = np.arange(-(-n // processes) * processes).reshape(-1, processes)
    chunks = -(-len(positions) // group_size)
    positions = np.pad(positions, ((0, chunks * group_size - len(positions)), (0, 0)), constant_values=-1)
    by_group = positions.reshape(chunks, group_size, processes).transpose(0, 2, 1).reshape(-1, group_size)
    steps = -(-len(by_group) // groups)
    by_group = np.pad(by_group, ((0, steps * groups - len(by_group)), (0, 0)), constant_values=-1)
    positions = by_group.reshape(steps, groups * group_size)
    weight = (positions >= 0) & (positions < n)
    return np.where(positions < 0, -1, positions % n).astype(np.int32), weight.astype(np.float32)


def draw(seed: int, purpose: tuple[int, ...], row: int, size: Size, options: Mapping[str, Any]) -> transforms.Draws:
    """Draws the choices for a training image.

    A pure function of its arguments.

    Args:
      seed: of the run.
      purpose: non-negative counters, such as (task, epoch).
      row: of the image in its set.
      size: (height, width) of the file.
      options: of `transforms.OPTIONS`.
    """
    return transforms.draw(rng_for(seed, *purpose, row), size, options)


def group_extents(sizes: np.ndarray, group_size: int) -> np.ndarray:
    """Returns the largest height and width within the group of each image.

    >>> group_extents(np.array([[2, 5], [4, 3], [1, 1], [0, 0]]), 2).tolist()
    [[4, 5], [4, 5], [1, 1], [1, 1]]

    Args:
      sizes: int `[batch, 2]`, (height, width); 0 for no image.
      group_size: images in a group.

    Returns:
      int32 `[batch, 2]`.
    """
    largest = sizes.reshape(-1, group_size, 2).max(axis=1)
    return np.repeat(largest, group_size, axis=0).astype(np.int32)


def choose_canvas(extents: np.ndarray, canvases: Sequence[Size]) -> Size:
    """Returns the canvas of the smallest area that holds all extents of a batch.

    >>> choose_canvas(np.array([[480, 640], [640, 480]]), ((832, 1344), (640, 1088)))
    (640, 1088)

    Args:
      extents: int `[batch, 2]`, (height, width).
      canvases: (height, width) each.

    Raises:
      UserError: no canvas holds the extents.
    """
    height, width = extents.max(axis=0)
    return _smallest(int(height), int(width), canvases)


def canvases_for(
    data: DetectionSet, options: Mapping[str, Any], *, training: bool, where: str = "config.augment"
) -> list[Size]:
    """Returns the canvases of a set, after checks that every batch fits one.

    Args:
      data: the images.
      options: of `transforms.OPTIONS` and `OPTIONS`.
      training: whether images pass the training transform.
      where: prefix of the options in messages.

    Raises:
      UserError: a canvas is not in multiples of 64, an image is too elongated, or no canvas holds all extents.
    """
    canvases = options["canvases"]
    for canvas in canvases:
        if len(canvas) != 2 or any(not isinstance(side, int) or side < 1 or side % MULTIPLE for side in canvas):
            raise UserError(f"{where}.canvases has {canvas!r}: a canvas is (height, width) in multiples of {MULTIPLE}")
    height, width = largest_size(data, options, training=training)
    if not canvases:
        return [(-(-height // MULTIPLE) * MULTIPLE, -(-width // MULTIPLE) * MULTIPLE)]
    _smallest(height, width, canvases, where)
    return [tuple(canvas) for canvas in canvases]


def largest_size(data: DetectionSet, options: Mapping[str, Any], *, training: bool) -> Size:
    """Returns the largest height and the largest width of transformed images.

    They may be those of different images.

    Args:
      data: the images.
      options: of `transforms.OPTIONS`.
      training: whether images pass the training transform.

    Raises:
      UserError: a side of an image becomes shorter than 16 pixels.
    """
    results = []
    file_sizes, first = np.unique(data.sizes, axis=0, return_index=True)
    for size, row in zip(file_sizes.tolist(), first, strict=True):
        if training:
            sizes = [transforms.resized_size(size, short, options["max_size"]) for short in options["scales"] or (0,)]
        else:
            sizes = [transforms.evaluation_size(size, options)]
        if min(map(min, sizes)) < transforms.MULTIPLE:
            raise UserError(
                f"{data.files[row]}: {size[1]} x {size[0]} pixels are too small or too elongated: a side becomes "
                f"shorter than {transforms.MULTIPLE} pixels; remove the image"
            )
        results += sizes
    if training and options["crop"]:
        results.append((_longest_crop_side(options),) * 2)
    height, width = np.max(results, axis=0).tolist()
    return height, width


def _longest_crop_side(options):
    """Returns a bound of the longest side of a crop after its resize, in pixels."""
    shortest, longest = options["crop_range"]
    ratio, cap = longest / shortest, options["max_size"]
    sides = [short * ratio if short else longest for short in options["scales"] or (0,)]
    if cap:  # the shorter side is rounded, and the longer one is a multiple of it
        sides = [min(side, cap + ratio / 2) for side in sides]
    return int(max(sides)) // transforms.MULTIPLE * transforms.MULTIPLE


def _smallest(height, width, canvases, where="config.augment"):
    fitting = [canvas for canvas in canvases if canvas[0] >= height and canvas[1] >= width]
    if not fitting:
        raise UserError(
            f"{where}.canvases has none that holds {height} x {width} pixels, the largest height and width of "
            f"transformed images: add ({-(-height // MULTIPLE) * MULTIPLE}, {-(-width // MULTIPLE) * MULTIPLE})"
        )
    return min(fitting, key=lambda canvas: canvas[0] * canvas[1])
