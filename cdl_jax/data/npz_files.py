"""Reading `.npz` files that users bring, and pictures of any usual array shape."""

import zipfile
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from cdl_jax.errors import UserError


def read(path: str | Path, keys: Iterable[str], optional: Iterable[str] = ()) -> dict[str, np.ndarray]:
    """The arrays named `keys`, and those of `optional` that are there; nothing is ever unpickled.

    Raises:
      UserError: no such file, no readable `.npz`, or a key is missing.
    """
    try:
        arrays = np.load(path, allow_pickle=False)
        if not isinstance(arrays, np.lib.npyio.NpzFile):
            raise UserError(f"{path}: a single array, not an .npz of {', '.join(keys)}; write it with numpy.savez")
        with arrays:
            missing = [key for key in keys if key not in arrays]
            if missing:
                raise UserError(f"{path}: no array {missing[0]!r} (it holds: {', '.join(arrays)})")
            return {key: arrays[key] for key in (*keys, *(key for key in optional if key in arrays))}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; set data.path") from None
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise UserError(f"{path}: cannot be read as .npz ({' '.join(str(error).split())}); make it anew") from None


def labels(values: np.ndarray, *, what: str) -> np.ndarray:
    """int32 `[n]` from whole numbers of any type, shaped `[n]` or `[n, 1]`.

    Raises:
      UserError: other shapes or types, or negative labels; `what` says whose they are.
    """
    if values.dtype.kind not in "iu" or values.shape not in ((len(values),), (len(values), 1)):
        raise UserError(f"{what}: labels must be whole numbers [n], not {values.dtype} {list(values.shape)}")
    if len(values) and values.min() < 0:
        raise UserError(f"{what}: label {values.min()} is negative; number classes from 0")
    return values.reshape(-1).astype(np.int32)


def rgb(images: np.ndarray, *, what: str) -> np.ndarray:
    """uint8 `[n, height, width, 3]` from `[n, height, width]`, `[..., 1]` or `[..., 3]`; grey gives equal channels.

    Raises:
      UserError: another shape or type; `what` says whose pictures they are.
    """
    if images.ndim == 3:
        images = images[..., None]
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] not in (1, 3):
        raise UserError(
            f"{what}: pictures must be uint8 [n, height, width] or [n, height, width, 1 or 3], not {images.dtype} "
            f"{list(images.shape)}"
        )
    return images if images.shape[3] == 3 else np.repeat(images, 3, axis=3)
