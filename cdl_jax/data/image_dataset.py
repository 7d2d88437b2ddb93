"""Decodes and transforms images of a split on the host.

`ImageDataset` is a random-access source for grain.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from cdl_jax.data.readers import tar_files
from cdl_jax.data.sampling import rng_for
from cdl_jax.data.stream import Split
from cdl_jax.data.transforms import augment
from cdl_jax.errors import UserError

if TYPE_CHECKING:
    import PIL.Image


@dataclass(frozen=True)
class ImageDataset:
    """Images in the order of `rows`, ready for the device, with labels and rows.

    split: the source of the images.
    rows: int `[n]`, rows of the split; -1 gives an image of zeros, which pads a batch.
    positions: int `[n]`, position of each image in the order of all processes.
    key_parts: non-negative counters behind the training transform, the seed first; None: the test transform.
    options: of `augment`.
    size: side of the images in pixels.
    load: `(split, row) -> (image, name)`; None: `load_image`.
    """

    split: Split
    rows: np.ndarray
    positions: np.ndarray
    key_parts: tuple[int, ...] | None
    options: Mapping[str, Any]
    size: int
    load: Callable[[Split, int], tuple[Any, str]] | None = None

    def __len__(self):
        return len(self.rows)

    def __repr__(self):
        return f"ImageDataset({len(self)})"

    def __getitem__(self, index):
        row = self.rows[index]
        if row < 0:  # pads an incomplete batch, and is cut off later
            return {"images": np.zeros((self.size, self.size, 3), np.uint8), "labels": np.int32(0), "rows": np.int32(0)}
        image, name = (self.load or load_image)(self.split, row)
        try:
            if self.key_parts is None:
                pixels = augment.transform_test_image(image, self.options, self.size)
            else:
                rng = rng_for(*self.key_parts, self.positions[index])
                uniforms = rng.random(augment.num_uniforms(self.options))
                pixels = augment.transform_train_image(image, uniforms, self.options, self.size)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        return {"images": pixels, "labels": np.int32(self.split.labels[row]), "rows": np.int32(row)}


def load_image(split: Split, row: int) -> tuple[Any, str]:
    """Loads one image of a split.

    Returns:
      (RGB Pillow image, its name for messages).

    Raises:
      UserError: the file is missing, damaged, too large, or has pixel values of an unknown scale.
    """
    if split.images is not None:
        from PIL import Image  # which a DeviceLoader does without

        return Image.fromarray(split.images[row]), f"image {row}"
    return load_file(split.files[row]), str(split.files[row])


@dataclass(frozen=True, eq=False)
class ArrayImage:
    """An image in memory where a file is expected; its text is its name for messages.

    pixels: uint8 `[height, width, 3]`.
    """

    pixels: np.ndarray
    name: str

    def __str__(self):
        return self.name


def load_file(file: "str | Path | tar_files.Member | ArrayImage") -> "PIL.Image.Image":
    """Returns the image of a file as 8-bit RGB.

    Args:
      file: a path, a member of an archive, or an image in memory.

    Raises:
      UserError: the file is missing, damaged, too large, or has pixel values of an unknown scale.
    """
    from cdl_jax.data.readers import decoding  # imports Pillow, which a DeviceLoader does without

    if isinstance(file, ArrayImage):
        return decoding.Image.fromarray(file.pixels)
    try:
        return decoding.decode(file.read() if isinstance(file, tar_files.Member) else file)
    except UserError as error:
        raise UserError(f"{file}: {error}") from None
    except Exception as error:  # the bytes are not trusted: their readers may raise anything
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{file}: cannot be read as an image ({reason}); replace the file or remove it") from None
