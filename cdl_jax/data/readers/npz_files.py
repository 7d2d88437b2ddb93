"""Reads and writes `.npz` files of users, and converts their labels and images."""

import io
import logging
import math
import zipfile
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from cdl_jax.data.readers import scaling
from cdl_jax.errors import UserError

_UNPACKED_LIMIT = 2**30  # bytes that an .npz may unpack to, whatever its compression
_MAX_HEADER = 2**16  # bytes; numpy itself refuses headers of more than 10,000


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a compressed `.npz` atomically, by a temporary file.

    Raises:
      OSError: the file cannot be written.
    """
    temporary = path.with_name(path.name + ".part")
    with open(temporary, "wb") as file:
        np.savez_compressed(file, **arrays)
    temporary.replace(path)


def read(path: str | Path, keys: Iterable[str], optional: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """Reads arrays of an `.npz`. Nothing is unpickled.

    Args:
      path: of the file.
      keys: names of arrays.
      optional: names of arrays that may be missing.

    Raises:
      UserError: the file is missing, is not a readable `.npz`, would fill the memory, or lacks a key.
    """
    keys = tuple(keys)
    try:
        with open(path, "rb") as file:
            if file.read(6) == b"\x93NUMPY":
                raise UserError(
                    f"{path}: has a single array instead of an .npz with {', '.join(keys)}; write it with numpy.savez"
                )
        with zipfile.ZipFile(path) as archive:
            check(path, archive, times=100)
        with np.load(path, allow_pickle=False) as arrays:
            missing = [key for key in keys if key not in arrays]
            if missing:
                raise UserError(f"{path}: no array {missing[0]!r} (it has: {', '.join(arrays)[:200]})")
            return {key: arrays[key] for key in (*keys, *(key for key in optional if key in arrays))}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; set data.path") from None
    except UserError:
        raise
    except Exception as error:  # the bytes are not trusted: their readers may raise anything
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: cannot be read as .npz ({reason}); make it again") from None


def check(path: str | Path, archive: zipfile.ZipFile, *, times: int) -> None:
    """Checks the declared sizes of the arrays of an .npz, before memory is allocated.

    Args:
      path: of the file, for messages.
      archive: the open file.
      times: limit on the unpacked size as a multiple of the file size, for arrays of more than 1 GiB.

    Raises:
      UserError: an array has Python objects, sizes do not agree, or the limit is exceeded.
      Exception: of any kind, if the file is not an .npz.
    """
    total = 0
    for info in archive.infolist():
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others may take any memory
            raise UserError(
                f"{path}: array {_short(info)} is packed in a way that numpy does not use; write it with numpy.savez"
            )
        with archive.open(info) as member:
            start = io.BytesIO(member.read(_MAX_HEADER))
        version = np.lib.format.read_magic(start)
        if version not in ((1, 0), (2, 0)):
            raise UserError(f"{path}: array {_short(info)} has the unknown .npy version {version}")
        shape, _, dtype = getattr(np.lib.format, f"read_array_header_{version[0]}_0")(start)
        stored = info.file_size - start.tell()
        if dtype.hasobject:
            raise UserError(f"{path}: array {_short(info)} has Python objects, which are refused: save plain numbers")
        if math.prod(shape) * dtype.itemsize != stored or not dtype.itemsize and math.prod(shape):
            raise UserError(f"{path}: array {_short(info)} declares {list(shape)} {dtype} but stores {stored} bytes")
        if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
            raise UserError(f"{path}: array {_short(info)} declares more bytes than are stored; download it again")
        total += info.file_size
    # Stops a small file that unpacks to more than the memory.
    if total > max(_UNPACKED_LIMIT, times * Path(path).stat().st_size):
        raise UserError(f"{path} would unpack to {total / 2**30:.1f} GiB, over {times} times its size: refused")


def _short(info) -> str:
    return " ".join(info.filename.split())[:100]


def labels(values: np.ndarray, *, what: str) -> np.ndarray:
    """Converts labels to int32 `[n]`.

    >>> labels(np.array([[0], [2]], np.uint8), what="y").tolist()
    [0, 2]

    Args:
      values: integers of any dtype, `[n]` or `[n, 1]`.
      what: name of the array, for messages.

    Raises:
      UserError: the shape or dtype is another, or a label is negative or too large.
    """
    if values.dtype.kind not in "iu" or not values.ndim or values.shape[1:] not in ((), (1,)):
        raise UserError(f"{what}: labels must be whole numbers [n], not {_dtype(values)} {list(values.shape)}")
    if len(values) and values.max() > np.iinfo(np.int32).max:
        raise UserError(f"{what}: label {values.max()} is too large; number classes from 0")
    if len(values) and values.min() < 0:
        raise UserError(f"{what}: label {values.min()} is negative; number classes from 0")
    return values.reshape(-1).astype(np.int32)


def names(values: np.ndarray, *, what: str) -> tuple[str, ...]:
    """Converts names of classes to text.

    >>> names(np.array([b"cat", b"dog"]), what="class_names")
    ('cat', 'dog')

    Args:
      values: `[classes]`, text, bytes in UTF-8, or integers.
      what: name of the array, for messages.

    Raises:
      UserError: the shape or dtype is another.
    """
    if values.ndim != 1 or values.dtype.kind not in "USiu":
        raise UserError(f"{what} must be text [classes], not {_dtype(values)} {list(values.shape)}")
    if values.dtype.kind == "S":
        return tuple(name.decode("utf-8", "surrogateescape") for name in values.tolist())
    return tuple(str(name) for name in values)


def rgb(images: np.ndarray, *, what: str) -> np.ndarray:
    """Converts images to uint8 `[n, height, width, 3]`; gray gives equal channels.

    >>> rgb(np.array([[[0, 255]]], np.uint8), what="x").tolist()
    [[[[0, 0, 0], [255, 255, 255]]]]

    Args:
      images: `[n, height, width]`, `[..., 1]` or `[..., 3]` of a dtype that `scaling.white_level` takes.
      what: the name of the array, for the message.

    Raises:
      UserError: the shape is another, or the values have no known scale.
    """
    return rgb_by_one_rule({what: images})[0]


def rgb_by_one_rule(arrays: Mapping[str, np.ndarray], *, where: str = "") -> list[np.ndarray]:
    """Converts arrays of images like `rgb`, with one scale for all.

    Examples are the training and the test images.

    Args:
      arrays: images by name, for messages.
      where: what the names are of, for messages.

    Raises:
      UserError: a shape is another, or the values have no known common scale.
    """
    prefix = f"{where}: " if where else ""
    parts, whites = [], {}
    for name, images in arrays.items():
        images = images[..., None] if images.ndim == 3 else images
        if images.ndim != 4 or images.shape[3] not in (1, 3) or 0 in images.shape[1:]:
            raise UserError(
                f"{prefix}{name}: images must be [n, height, width] or [n, height, width, 1 or 3], not "
                f"{_dtype(images)} {list(images.shape)}"
            )
        try:
            white = scaling.white_level(images)
        except UserError as error:
            raise UserError(f"{prefix}{name}: {error}") from None
        if white is not None:
            whites.setdefault(white, name)
        parts.append(images)
    if len(whites) > 1:
        (white, name), (other_white, other_name) = list(whites.items())[:2]
        raise UserError(
            f"{prefix}{name} seems to have values up to {white:g} and {other_name} up to {other_white:g}: save both "
            "in one scale, as uint8 with values up to 255"
        )
    result = []
    for name, images in zip(arrays, parts, strict=True):
        scaled = scaling.scale(images, next(iter(whites), 255.0))
        if images.dtype != np.uint8:
            logging.getLogger("cdl_jax").warning(
                "%s%s: %s values scaled to 0 to %d", prefix, name, images.dtype, scaled.max(initial=0)
            )
        result.append(scaled if scaled.shape[3] == 3 else np.repeat(scaled, 3, axis=3))
    return result


def _dtype(values) -> str:
    return " ".join(str(values.dtype).split())[:100]
