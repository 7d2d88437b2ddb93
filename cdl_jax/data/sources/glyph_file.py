"""Loads a file of character images (Split-Glyph).

`cdl_jax.data.tools.make_glyphs` makes the file from fonts.
"""

from collections.abc import Mapping
from typing import Any

from cdl_jax.data import stream
from cdl_jax.data.readers import npz_files
from cdl_jax.data.stream import Dataset, Split
from cdl_jax.errors import UserError
from cdl_jax.runtime import paths

OPTIONS: dict[str, Any] = {}


def load(options: Mapping[str, Any]) -> Dataset:
    """Loads the images of an `.npz`.

    Its arrays are x uint8 `[n, height, width]`, y `[n]`, chars `[classes]` and is_test bool `[n]`.

    Raises:
      UserError: the path is empty, the file is missing, or an array has another shape or dtype.
    """
    if not options["path"]:
        raise UserError(
            "the glyph_file source needs data.path; make a file with: python -m cdl_jax.data.tools.make_glyphs --help"
        )
    path = paths.resolve(options["path"], "data.path")
    arrays = npz_files.read(path, ("x", "y", "chars", "is_test"))
    images, labels = npz_files.rgb(arrays["x"], what=f"{path}: x"), npz_files.labels(arrays["y"], what=f"{path}: y")
    is_test = arrays["is_test"]
    if is_test.dtype != bool or not is_test.shape == labels.shape == images.shape[:1]:
        raise UserError(f"{path}: x, y and is_test (bool) must have one length")
    chars = npz_files.names(arrays["chars"], what=f"{path}: chars")
    train, test = (Split(labels[rows], images[rows]) for rows in (~is_test, is_test))
    return Dataset(path.stem, chars, train, test)


def placeholder(options: Mapping[str, Any]) -> Dataset:
    """Returns the sizes of Split-Glyph-100, as a placeholder for a file of the user."""
    return stream.placeholder("glyph_file", 100, 48_928, 21_609, side=32)
