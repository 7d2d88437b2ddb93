"""Decodes image files of any Pillow mode into 8-bit RGB, within a limit on size.

8-bit color and gray images keep their values. Deeper images are scaled to 0..255 and never cut: 16-bit values v become
v * 255 / 65535, rounded. An alpha channel is dropped and the colors below it stay, as in torchvision's `ImageFolder`.
The first frame or page of a file is decoded. Orientation tags (EXIF) and color profiles have no effect.
"""

import io
import re
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from cdl_jax.errors import UserError

# Pillow would pass files of other formats to programs such as Ghostscript, whatever their names.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# Pillow's own limit, 256 MiB of 8-bit RGB. Decoding needs up to 9 bytes per pixel, 15 for deep images.
MAX_PIXELS = 89_478_485
MAX_SIDE = 65_535  # the limit of JPEG
_WHITE = 65_535
# Numbers up to this maximum could also be gray levels of another scale, such as the 16 of scikit-learn's digits.
_DARK = 16

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `decode` has the same limit


def decode(file: str | Path | bytes) -> Image.Image:
    """Returns the image in a file as 8-bit RGB.

    Args:
      file: a path, or the content of a file.

    Raises:
      UserError: the image is larger than the limits, or its values have no known scale.
      Exception: of any kind, if the file is damaged or of another format.
    """
    with _open(file) as image:
        low_bytes = _low_bytes(image)
        if low_bytes is None:
            return rgb(image)
        high = np.array(image)
    tile, channels = low_bytes
    with _open(file) as image:
        image.tile = [tile]
        low = np.asarray(image)
    result = high[..., :3]
    for row, high_row, low_row in zip(result, high, low, strict=True):  # by rows, for the memory
        difference = low_row[:, channels].astype(np.int16) - high_row[:, :3]
        # (256 high + low) / 257, rounded
        row += (difference > 128).astype(np.uint8) - (difference < -128)
    return Image.fromarray(np.ascontiguousarray(result))


def rgb(image: Image.Image) -> Image.Image:
    """Returns an image of any mode as 8-bit RGB.

    Raises:
      UserError: the values have no known scale.
    """
    if image.mode == "F":
        return _gray(image, from_floats(np.asarray(image)))
    if image.mode == "I" or image.mode.startswith("I;"):
        return _gray(image, _from_integers(np.asarray(image), *_depth(image)))
    if isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # the same colors, without Pillow's warning
    return image.convert("RGB")


def from_floats(values: np.ndarray) -> np.ndarray:
    """Returns floating-point gray levels as uint8 of the same shape.

    >>> from_floats(np.array([0.0, 0.5, 1.0])).tolist()
    [0, 128, 255]

    Args:
      values: in [0, 1] or in [0, 255], decided by the largest.

    Raises:
      UserError: the values are outside of these ranges, are NaN, or have a maximum between them (see `_DARK`).
    """
    low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
    slack = 1e-3  # what arithmetic in float16 leaves
    if not -slack <= low <= high <= 255 + slack or 1 + slack < high <= _DARK:
        raise UserError(f"floating-point values from {low:g} to {high:g}: scale them to [0, 1] or to [0, 255]")
    return _scale(values, 1.0 if high <= 1 + slack else 255.0)


def from_array(values: np.ndarray) -> np.ndarray:
    """Returns gray levels of any real dtype as uint8, by one rule for the array.

    >>> from_array(np.array([0, 65535], np.uint16)).tolist()
    [0, 255]

    uint8: unchanged. bool: 0 and 255. Floating point: as in `from_floats`. uint16: v * 255 / 65535. Other integers: in
    [0, 255], unchanged.

    Raises:
      UserError: the values have no known scale, or the dtype is not one of numbers.
    """
    kind, low, high = values.dtype.kind, *((values.min(), values.max()) if values.size else (0, 0))
    if values.dtype == np.uint8:
        return values
    if kind == "b":
        return values.astype(np.uint8) * np.uint8(255)
    if kind == "f":
        return from_floats(values)
    if kind not in "iu":
        raise UserError(f"values of type {values.dtype}: save uint8")
    if values.dtype == np.uint16 and (high > 255 or not high):
        return _scale(values, _WHITE)
    if values.dtype == np.uint16 or low < 0 or high > 255 or 0 < high <= _DARK:
        raise UserError(
            f"{values.dtype} values from {low} to {high}: save uint8 with values up to 255, or uint16 up to 65535"
        )
    return values.astype(np.uint8)


def _open(file) -> Image.Image:
    name = io.BytesIO(file) if isinstance(file, bytes) else file
    limit = f"the limit is {MAX_PIXELS:,} pixels and {MAX_SIDE:,} a side: shrink the image, or remove the file"
    try:
        image = Image.open(name, formats=FORMATS)
    except Image.DecompressionBombError:
        raise UserError(f"too large to decode: {limit}") from None
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        image.close()
        raise UserError(f"{width} x {height} pixels are too large to decode: {limit}")
    return image


def _low_bytes(image) -> tuple[Any, list[int]] | None:
    """Returns the tile and the channels that decode the low bytes of 16-bit colors; None for other images.

    Pillow by itself decodes the high bytes alone.
    """
    if image.format not in ("PNG", "TIFF") or len(image.tile) != 1:
        return None
    tile = image.tile[0]
    rawmode, *others = tile.args if isinstance(tile.args, tuple) else (tile.args,)
    if rawmode == "LA;16B":  # of a PNG: as four bytes of which the second is the low one of the gray level
        return tile._replace(args="RGBA"), [1, 1, 1]
    match = re.fullmatch(r"(RGBA?|RGBX);16([LBN])", str(rawmode))
    if not match:
        return None
    order = match[2].replace("N", "L" if sys.byteorder == "little" else "B")
    swapped = f"{match[1]};16{'B' if order == 'L' else 'L'}"
    return tile._replace(args=(swapped, *others) if others else swapped), [0, 1, 2]


def _depth(image) -> tuple[int, bool]:
    """Returns the white level of an integer image, and whether another scale is as likely."""
    if image.format != "TIFF":
        return _WHITE, False  # PNG has 16 bits; Pillow scales PGM to 16 bits
    bits, signed = image.tag_v2.get(258, (16,))[0], image.tag_v2.get(339, (1,))[0] == 2
    return 2**bits - 1 if bits < 16 else _WHITE, bits > 16 or signed


def _from_integers(values, white, is_ambiguous):
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if not 0 <= low <= high <= white or is_ambiguous and 0 < high <= 255:
        raise UserError(f"whole numbers from {low} to {high} with an unknown white level: save the image with 8 bits")
    return _scale(values, white)


def _gray(image, levels):
    if image.format == "TIFF" and image.tag_v2.get(262) == 0:  # WhiteIsZero, which Pillow ignores at this depth
        levels = 255 - levels
    return Image.fromarray(levels).convert("RGB")


def _scale(values, white) -> np.ndarray:
    """Returns values in [0, white] as uint8 in [0, 255], a part at a time."""
    result = np.empty(values.shape, np.uint8)
    step = max(1, 2**20 * len(values) // max(1, values.size))
    for start in range(0, len(values), step):
        part = values[start : start + step].astype(np.float64)
        result[start : start + step] = np.rint(np.clip(part * (255 / white), 0, 255))
    return result
