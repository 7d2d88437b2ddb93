"""Decodes image files of any Pillow mode into 8-bit RGB, within a limit on size.

8-bit color and gray images keep their values. Deeper images are scaled to 0..255 and never cut: 16-bit values v become
v * 255 / 65535, rounded. An alpha channel is dropped and the colors below it stay, as in torchvision's `ImageFolder`.
The first frame or page of a file is decoded. Orientation tags (EXIF, TIFF, XMP) and color profiles have no effect.
"""

import io
import re
import sys
import warnings
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, UnidentifiedImageError

from cdl_jax.data.readers import scaling
from cdl_jax.errors import UserError

# Pillow would pass files of other formats to programs such as Ghostscript, whatever their names.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
# Pillow's own limit, 256 MiB of 8-bit RGB. Decoding needs up to 9 bytes per pixel, 15 for deep images.
MAX_PIXELS = 89_478_485
MAX_SIDE = 65_535  # the limit of JPEG
# Tags of TIFF.
_WIDTH, _HEIGHT, _BITS, _PHOTOMETRIC, _FILL_ORDER, _ORIENTATION = 256, 257, 258, 262, 266, 274
_PLANES, _SAMPLE_FORMAT = 284, 339
# libtiff returns numbers in the order of the machine. Pillow expects the order of the file for these raw modes.
_NATIVE = {"F;32F": "F;32NF", "F;32BF": "F;32NF", "I;32S": "I;32NS", "I;32BS": "I;32NS"}
_NATIVE |= {"I;16S": "I;16NS", "I;16BS": "I;16NS"}

warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)  # `decode` has the same limit


def decode(file: str | Path | bytes) -> Image.Image:
    """Returns the image in a file as 8-bit RGB.

    Args:
      file: a path, or the content of a file.

    Raises:
      UserError: the image is larger than the limits, or its values have no known scale.
      Exception: of any kind, if the file is damaged or of another format.
    """
    if isinstance(file, bytes):
        return _decode(io.BytesIO(file))
    with open(file, "rb") as content:  # By a path, Pillow would map some files into memory with the size of their tags.
        return _decode(content)


def read_size(file: str | Path) -> tuple[int, int]:
    """Returns the (height, width) of an image file by its header; no pixel is decoded.

    Raises:
      UserError: the image is larger than the limits.
      Exception: of any kind, if the header is damaged or of another format.
    """
    with open(file, "rb") as content, _open(content) as image:
        return image.size[1], image.size[0]


def rgb(image: Image.Image) -> Image.Image:
    """Returns an image of any mode as 8-bit RGB.

    Raises:
      UserError: the values have no known scale.
    """
    if image.format == "TIFF" and 2 in image.tag_v2.get(_SAMPLE_FORMAT, ()) and image.tag_v2.get(_BITS, (1,))[0] <= 16:
        values = np.asarray(image)
        raise _unknown_scale(values.view(np.int8) if values.dtype == np.uint8 else values)
    if image.mode == "F":
        values = np.asarray(image)
        return _gray(image, scaling.scale(values, scaling.white_level(values) or 255.0))
    if image.mode == "I" or image.mode.startswith("I;"):
        return _gray(image, _from_integers(np.asarray(image), *_depth(image)))
    if isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # the same colors, without Pillow's warning
    return image.convert("RGB")


def _decode(file: IO[bytes]) -> Image.Image:
    with _open(file) as image:
        low_bytes = _low_bytes(image)
        if low_bytes is None:
            return rgb(image)
        is_cmyk, high = image.mode == "CMYK", np.array(image)
    tiles, channels = low_bytes
    with _open(file) as image:
        image.tile = tiles
        low = np.asarray(image)
    result = high[..., : len(channels)]
    for row, high_row, low_row in zip(result, high, low, strict=True):  # by rows, for the memory
        difference = low_row[:, channels].astype(np.int16) - high_row[:, : len(channels)]
        # (256 high + low) / 257, rounded
        row += (difference > 128).astype(np.uint8) - (difference < -128)
    if is_cmyk:
        return Image.frombuffer("CMYK", (result.shape[1], result.shape[0]), result, "raw", "CMYK", 0, 1).convert("RGB")
    return Image.fromarray(np.ascontiguousarray(result))


def _open(file: IO[bytes]) -> Image.Image:
    limit = f"the limit is {MAX_PIXELS:,} pixels and {MAX_SIDE:,} a side: shrink the image, or remove the file"
    file.seek(0)
    try:
        image = Image.open(file, formats=FORMATS)
    except Image.DecompressionBombError:
        raise UserError(f"too large to decode: {limit}") from None
    except UnidentifiedImageError:
        raise UnidentifiedImageError("unknown format, or a variant of one that Pillow cannot read") from None
    if image.format == "TIFF":
        # Pillow alone would rotate this format by its tag while decoding.
        image.getexif()[_ORIENTATION] = 1
        image._size = image.tag_v2[_WIDTH], image.tag_v2[_HEIGHT]
    width, height = image.size
    if width * height > MAX_PIXELS or max(width, height) > MAX_SIDE:
        image.close()
        raise UserError(f"{width} x {height} pixels are too large to decode: {limit}")
    if image.format == "TIFF":
        image.tile = _repair_tiles(image)
    return image


def _repair_tiles(image) -> list[Any]:
    """Returns the tiles of a TIFF with the raw modes that its bytes have.

    Raises:
      UserError: Pillow cannot read this kind of planes.
    """
    tags, tiles = image.tag_v2, image.tile
    if any(tile[0] == "libtiff" for tile in tiles):
        tiles = [_with_rawmode(tile, _NATIVE.get(tile.args[0], tile.args[0])) for tile in tiles]
    if tags.get(_PLANES, 1) != 2:
        return tiles
    bits, is_raw = set(tags.get(_BITS, (1,))), all(tile[0] == "raw" for tile in tiles)
    if not is_raw and (len(image.getbands()) == 1 or bits == {8}):
        return tiles
    # Of the raw mode, Pillow keeps one letter a plane.
    if is_raw and tags.get(_FILL_ORDER, 1) == 1 and tags.get(_PHOTOMETRIC, 0) != 0:
        if bits == {8}:
            return tiles
        if bits == {16} and image.mode in ("RGB", "RGBA") and all(tile.args[0] in "RGBA" for tile in tiles):
            order = "L" if tags.prefix == b"II" else "B"
            return [_with_rawmode(tile, f"{tile.args[0]};16{order}") for tile in tiles]
    raise UserError(
        "a TIFF with separate planes of this depth and compression cannot be decoded exactly: save the image with "
        "interleaved channels (planar configuration 1), or as PNG"
    )


def _low_bytes(image) -> tuple[list[Any], list[int]] | None:
    """Returns the tiles and channels that decode the low bytes of 16-bit colors.

    The result is None for other images. Pillow by itself decodes the high bytes alone.
    """
    if image.format not in ("PNG", "TIFF") or not image.tile:
        return None
    rawmode = _rawmode(image.tile[0])
    if rawmode == "LA;16B":  # of a PNG: as four bytes of which the second is the low one of the gray level
        return [_with_rawmode(tile, "RGBA") for tile in image.tile], [1, 1, 1]
    match = re.fullmatch(r"(?:RGBA?|RGBX|CMYK|[RGBA]);16([LBN])", rawmode)
    if not match:
        return None
    order = match[1].replace("N", "L" if sys.byteorder == "little" else "B")
    swapped = "B" if order == "L" else "L"
    tiles = [_with_rawmode(tile, _rawmode(tile)[:-1] + swapped) for tile in image.tile]
    return tiles, [0, 1, 2, 3] if image.mode == "CMYK" else [0, 1, 2]


def _rawmode(tile) -> str:
    return str(tile.args[0] if isinstance(tile.args, tuple) else tile.args)


def _with_rawmode(tile, rawmode):
    return tile._replace(args=(rawmode, *tile.args[1:]) if isinstance(tile.args, tuple) else rawmode)


def _depth(image) -> tuple[int, bool]:
    """Returns the white level of an integer image, and whether it is uncertain.

    The level is uncertain if another scale is as likely.
    """
    if image.format != "TIFF":
        return scaling.WHITE, False  # PNG has 16 bits; Pillow scales PGM to 16 bits
    bits = image.tag_v2.get(_BITS, (16,))[0]
    return 2**bits - 1 if bits < 16 else scaling.WHITE, bits > 16


def _from_integers(values, white, is_ambiguous):
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    if not 0 <= low <= high <= white or is_ambiguous and 0 < high <= 255:
        raise _unknown_scale(values)
    return scaling.scale(values, white)


def _unknown_scale(values) -> UserError:
    low, high = (int(values.min()), int(values.max())) if values.size else (0, 0)
    return UserError(
        f"whole numbers from {low} to {high} with an unknown white level: save the image with 8 bits, without a sign"
    )


def _gray(image, levels):
    if image.format == "TIFF" and image.tag_v2.get(_PHOTOMETRIC) == 0:  # WhiteIsZero; Pillow ignores it at this depth
        levels = 255 - levels
    return Image.fromarray(levels).convert("RGB")


def square(image: Image.Image, side: int) -> np.ndarray:
    """Returns an image as uint8 `[side, side, 3]`.

    The shorter side is resized (bicubic), and the center is cropped.
    """
    image = image.convert("RGB")
    scale = side / min(image.size)
    size = tuple(max(side, round(length * scale)) for length in image.size)
    left, top = ((length - side) // 2 for length in size)
    box = (left / scale, top / scale, (left + side) / scale, (top + side) / scale)
    box = (box[0], box[1], min(box[2], image.width), min(box[3], image.height))
    return np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box=box))
