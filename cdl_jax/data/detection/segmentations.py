"""Reads the segmentations of objects, and draws the label map of each image.

A segmentation is a list of polygons `[[x0, y0, x1, y1, ...], ...]` in pixels, or run lengths: `counts` of the pixels
column by column, outside and inside of the object in turn, as integers or as COCO's compressed text.
"""

import math
from array import array
from collections.abc import Iterable
from typing import Any

import numpy as np

from cdl_jax.runtime.console import short_repr

_MIN_NUMBERS = 6  # of a polygon: three corners
_MAX_DIGITS = 7  # of a compressed number, 5 bits each; the pixels of an image need 33 bits


class DamagedError(ValueError):
    """A segmentation that no mask of pixels corresponds to.

    The message continues a sentence that names the segmentation.
    """


def pack(segmentation: Any) -> Any:
    """Stores polygons as arrays, without a Python object for each number.

    Other values are returned as they are.

    >>> pack([[1, 2, 3]]), pack("text"), pack([["text"]])
    ([array('d', [1.0, 2.0, 3.0])], 'text', [['text']])

    Args:
      segmentation: of an annotation, as in the file.
    """
    try:
        return [array("d", polygon) for polygon in segmentation] if isinstance(segmentation, list) else segmentation
    except (TypeError, OverflowError):
        return segmentation


def encode(segmentation: Any, size: tuple[int, int]) -> bytes:
    """Returns the compressed run lengths of an object's pixels.

    Args:
      segmentation: of `pack`.
      size: (height, width) of the image in pixels.

    Raises:
      DamagedError: it is no segmentation of an image of this size.
    """
    if isinstance(segmentation, list):
        return _encode_polygons(segmentation, *size)
    if isinstance(segmentation, dict):
        return _encode_runs(segmentation, *size)
    raise DamagedError(f"must be polygons or run lengths, not {short_repr(segmentation)}")


def decode(runs: bytes, size: tuple[int, int]) -> np.ndarray:
    """Returns the pixels of an object, bool `[height, width]`.

    Args:
      runs: of `encode`.
      size: (height, width) of the image in pixels.
    """
    from pycocotools import mask

    return mask.decode({"size": list(size), "counts": runs}).astype(bool)


def label_map(masks: Iterable[np.ndarray], labels: np.ndarray, size: tuple[int, int], dtype=np.uint8) -> np.ndarray:
    """Returns the label of each pixel: that of the first object that covers it, or 0.

    >>> masks = np.array([[[True, False, False]], [[True, True, False]]])
    >>> label_map(masks, np.array([4, 7]), (1, 3)).tolist()
    [[4, 7, 0]]

    Args:
      masks: bool `[height, width]` of each object.
      labels: int `[k]`, from 1.
      size: (height, width).
      dtype: of the map, with room for the largest label; default uint8.
    """
    result = np.zeros(size, dtype)
    for mask, label in zip(masks, labels, strict=True):
        result[mask & (result == 0)] = label
    return result


def _encode_polygons(polygons, height, width):
    from pycocotools import mask

    if not polygons:
        raise DamagedError("has no polygon")
    for polygon in polygons:
        _check_polygon(polygon, max(height, width))
    return mask.merge(mask.frPyObjects(polygons, height, width))["counts"]


def _check_polygon(polygon, longest):
    if not isinstance(polygon, array):
        raise DamagedError(f"must be a list of polygons, lists of numbers, but has {short_repr(polygon)}")
    if len(polygon) < _MIN_NUMBERS or len(polygon) % 2:
        raise DamagedError(
            f"has a polygon of {len(polygon)} numbers: x and y of {_MIN_NUMBERS // 2} corners or more are needed"
        )
    # pycocotools allocates memory in proportion to the perimeter.
    wrong = next((x for x in polygon if not (math.isfinite(x) and -longest <= x <= 2 * longest)), None)
    if wrong is not None:
        raise DamagedError(f"has a corner at {wrong:g}, far outside of the image")


def _encode_runs(segmentation, height, width):
    from pycocotools import mask

    if segmentation.get("size") != [height, width]:
        raise DamagedError(f"has the size {short_repr(segmentation.get('size'))}, and the image {[height, width]}")
    counts = segmentation.get("counts")
    if isinstance(counts, list):
        if any(type(number) is not int for number in counts):
            raise DamagedError("has counts that are no integers")
        _check_runs(counts, height * width)
        return mask.frPyObjects(segmentation, height, width)["counts"]
    if not isinstance(counts, str) or not counts.isascii():
        raise DamagedError(f"must have counts, a list of integers or compressed text, not {short_repr(counts)}")
    _check_runs(run_lengths(counts.encode()).tolist(), height * width)
    return counts.encode()


def _check_runs(counts, pixels):
    """Refuses counts of another number of pixels.

    pycocotools would return arbitrary memory for the missing pixels.
    """
    if min(counts, default=0) < 0 or sum(counts) != pixels:
        raise DamagedError(f"has counts of {sum(counts)} pixels, and the image has {pixels}")


def run_lengths(text: bytes) -> np.ndarray:
    """Returns the counts of compressed run lengths, int64 `[runs]`.

    Each character has 5 bits of a number, the lowest first, and a bit that announces another character. From the fourth
    on, a number is the difference from the one two before.

    >>> run_lengths(b"=2405").tolist()
    [13, 2, 4, 2, 9]

    Raises:
      DamagedError: the text ends within a number, or has characters that do not occur in run lengths.
    """
    digits = np.frombuffer(text, np.uint8).astype(np.int64) - ord("0")
    is_last = digits & 32 == 0
    if not len(digits) or digits.min() < 0 or digits.max() > 63 or not is_last[-1]:
        raise DamagedError("has counts that are no compressed run lengths")
    ends = np.flatnonzero(is_last)
    starts = np.append(0, ends[:-1] + 1)
    sizes = ends - starts + 1
    if sizes.max() > _MAX_DIGITS:
        raise DamagedError("has counts that are no compressed run lengths")
    places = np.arange(len(digits)) - np.repeat(starts, sizes)
    numbers = np.add.reduceat((digits & 31) << 5 * places, starts)
    numbers -= np.where(digits[ends] & 16, 1 << 5 * sizes, 0)
    numbers[1::2], numbers[2::2] = numbers[1::2].cumsum(), numbers[2::2].cumsum()
    return numbers
