"""Decoded images of files, retained in memory for the next epochs."""

import threading
from typing import TYPE_CHECKING

import numpy as np

from cdl_jax.data.image_dataset import load_image
from cdl_jax.data.stream import Split

if TYPE_CHECKING:
    import PIL.Image


class DecodedCache:
    """Retains the decoded images of a split, up to a limit; threads share it.

    The image of a row is retained as it was decoded, so later epochs crop the same pixels. Images beyond the limit are
    decoded each time.
    """

    def __init__(self, limit: int):
        """Creates an empty cache.

        Args:
          limit: bytes of all retained images.
        """
        self._limit, self._bytes, self._is_full, self._lock = limit, 0, False, threading.Lock()
        self._images: dict[int, np.ndarray] = {}

    def make_room(self, rows: np.ndarray) -> None:
        """Drops all images but those of `rows`, which are read next, if the cache is full."""
        with self._lock:
            if self._is_full:
                common = self._images.keys() & set(np.unique(rows).tolist())
                self._images = {row: self._images[row] for row in common}
                self._bytes = sum(image.nbytes for image in self._images.values())
                self._is_full = False

    def load(self, split: Split, row: int) -> tuple["PIL.Image.Image", str]:
        """Loads an image as `load_image` does, without decoding one that is retained.

        Args:
          split: the same in all calls, with files.
          row: of the split.

        Returns:
          (RGB image, its name for messages).

        Raises:
          UserError: the file cannot be read as an image.
        """
        from PIL import Image  # which a DeviceLoader does without

        if (pixels := self._images.get(int(row))) is not None:
            return Image.fromarray(pixels), str(split.files[row])
        image, name = load_image(split, row)
        self._add(int(row), image)
        return image, name

    def _add(self, row, image):
        size = image.width * image.height * 3
        with self._lock:
            if self._bytes + size > self._limit:
                self._is_full = True
            elif row not in self._images:
                self._bytes += size
                self._images[row] = np.asarray(image)
