"""Reading `.npz` files that users bring, and pictures of any usual array shape; writing such files."""

import io
import logging
import math
import zipfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cdl_jax.errors import UserError

_UNPACKED_FREELY = 2**30  # bytes that an .npz may hold, however well it was compressed
_LONGEST_HEADER = 2**16  # bytes; numpy itself takes no header of more than 10,000


def write(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a compressed `.npz` aside and renames it, so that nobody sees half of it.

    Raises:
      OSError: it cannot be written.
    """
    aside = path.with_name(path.name + ".part")
    with open(aside, "wb") as file:
        np.savez_compressed(file, **arrays)
    aside.replace(path)


def read(path: str | Path, keys: Iterable[str], optional: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """The arrays named `keys`, and those of `optional` that are there; nothing is ever unpickled.

    Raises:
      UserError: no such file, no readable `.npz`, one that would fill the memory, or a key is missing.
    """
    keys = tuple(keys)
    try:
        with open(path, "rb") as file:
            if file.read(6) == b"\x93NUMPY":
                raise UserError(f"{path}: a single array, not an .npz of {', '.join(keys)}; write it with numpy.savez")
        with zipfile.ZipFile(path) as archive:
            check(path, archive, times=100)
        with np.load(path, allow_pickle=False) as arrays:
            missing = [key for key in keys if key not in arrays]
            if missing:
                raise UserError(f"{path}: no array {missing[0]!r} (it holds: {', '.join(arrays)[:200]})")
            return {key: arrays[key] for key in (*keys, *(key for key in optional if key in arrays))}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; set data.path") from None
    except UserError:
        raise
    except Exception as error:  # the bytes are not trusted: their readers may raise anything
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: cannot be read as .npz ({reason}); make it anew") from None


def check(path: str | Path, archive: zipfile.ZipFile, *, times: int) -> None:
    """Compares what the arrays of an .npz declare with what is there, before memory is taken.

    Args:
      times: arrays of more than 1 GiB may be so many times as large as the file.

    Raises:
      UserError: Python objects, sizes that do not agree, or more bytes than that.
      Exception: of any kind, for what is no .npz.
    """
    total = 0
    for info in archive.infolist():
        if info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):  # others may take any memory
            raise UserError(f"{path}: array {_short(info)} is packed as numpy never does; write it with numpy.savez")
        with archive.open(info) as member:
            start = io.BytesIO(member.read(_LONGEST_HEADER))
        version = np.lib.format.read_magic(start)
        if version not in ((1, 0), (2, 0)):
            raise UserError(f"{path}: array {_short(info)} has the unknown .npy version {version}")
        shape, _, dtype = getattr(np.lib.format, f"read_array_header_{version[0]}_0")(start)
        stored = info.file_size - start.tell()
        if dtype.hasobject:
            raise UserError(f"{path}: array {_short(info)} holds Python objects, not read: save plain numbers")
        if math.prod(shape) * dtype.itemsize != stored or not dtype.itemsize and math.prod(shape):
            raise UserError(f"{path}: array {_short(info)} declares {list(shape)} {dtype} but stores {stored} bytes")
        if info.compress_type == zipfile.ZIP_STORED and info.file_size != info.compress_size:
            raise UserError(f"{path}: array {_short(info)} declares more bytes than are stored; download it again")
        total += info.file_size
    # Stops a small file that unpacks to more than the memory.
    if total > max(_UNPACKED_FREELY, times * Path(path).stat().st_size):
        raise UserError(f"{path} would unpack to {total / 2**30:.1f} GiB, over {times} times its size: not read")


def _short(info) -> str:
    return " ".join(info.filename.split())[:100]


def labels(values: np.ndarray, *, what: str) -> np.ndarray:
    """int32 `[n]` from whole numbers of any type, shaped `[n]` or `[n, 1]`.

    Raises:
      UserError: other shapes or types, or negative labels; `what` says whose they are.
    """
    if values.dtype.kind not in "iu" or values.shape not in ((len(values),), (len(values), 1)):
        raise UserError(f"{what}: labels must be whole numbers [n], not {values.dtype} {list(values.shape)}")
    if len(values) and values.max() > np.iinfo(np.int32).max:
        raise UserError(f"{what}: label {values.max()} is too large; number classes from 0")
    if len(values) and values.min() < 0:
        raise UserError(f"{what}: label {values.min()} is negative; number classes from 0")
    return values.reshape(-1).astype(np.int32)


def rgb(images: np.ndarray, *, what: str) -> np.ndarray:
    """Returns images as uint8 `[n, height, width, 3]`; gray gives equal channels.

    Args:
      images: `[n, height, width]`, `[..., 1]` or `[..., 3]` of a dtype that `decoding.from_array` takes.
      what: the name of the array, for the message.

    Raises:
      UserError: another shape, or values that have no known scale.
    """
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.shape[3] not in (1, 3):
        raise UserError(
            f"{what}: images must be [n, height, width] or [n, height, width, 1 or 3], not {images.dtype} "
            f"{list(images.shape)}"
        )
    if images.dtype != np.uint8:
        from cdl_jax.data.readers import decoding  # imports Pillow, which uint8 arrays do without

        try:
            scaled = decoding.from_array(images)
        except UserError as error:
            raise UserError(f"{what}: {error}") from None
        logging.getLogger("cdl_jax").warning(
            "%s: %s values scaled to 0 to %d", what, images.dtype, scaled.max(initial=0)
        )
        images = scaled
    return images if images.shape[3] == 3 else np.repeat(images, 3, axis=3)
