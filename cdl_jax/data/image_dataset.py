"""Images of a split, decoded and transformed on the host, as a random-access source for grain."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from cdl_jax.data.readers import tar_files
from cdl_jax.data.sampling import rng_for
from cdl_jax.data.stream import Split
from cdl_jax.data.transforms import augment
from cdl_jax.errors import UserError


@dataclass(frozen=True)
class ImageDataset:
    """A random-access source for grain: element i is picture `rows[i]`, ready for the device, its label and row."""

    split: Split
    rows: np.ndarray
    places: np.ndarray  # of each row in the whole order, over all processes
    key_parts: tuple[int, ...] | None  # None: test
    options: Mapping[str, Any]
    size: int

    def __len__(self):
        return len(self.rows)

    def __repr__(self):
        return f"ImageDataset({len(self)})"

    def __getitem__(self, index):
        row = self.rows[index]
        if row < 0:  # fills up an incomplete batch, and is cut off again
            return {"images": np.zeros((self.size, self.size, 3), np.uint8), "labels": np.int32(0), "rows": np.int32(0)}
        picture, name = load_image(self.split, row)
        try:
            if self.key_parts is None:
                image = augment.transform_test_image(picture, self.options, self.size)
            else:
                draws = rng_for(*self.key_parts, self.places[index]).random(augment.num_uniforms(self.options))
                image = augment.transform_train_image(picture, draws, self.options, self.size)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
        return {"images": image, "labels": np.int32(self.split.labels[row]), "rows": np.int32(row)}


def load_image(split, row):
    """(RGB Pillow picture, its name)."""
    from PIL import Image

    from cdl_jax.data.readers import decoding  # imports Pillow, which resident images do without

    if split.images is not None:
        return Image.fromarray(split.images[row]), f"picture {row}"
    path = split.files[row]
    try:
        return decoding.decode(path.read() if isinstance(path, tar_files.Member) else path), str(path)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    except Exception as error:  # the bytes are not trusted: their readers may raise anything
        reason = " ".join(str(error).split())[:200]
        raise UserError(f"{path}: cannot be read as a picture ({reason}); replace the file or remove it") from None
