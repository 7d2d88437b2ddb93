"""Loads small images of characters in many typefaces, the data of the quick start.

The images are part of cdl_jax. Test typefaces are not in the training set. `cdl_jax.data.tools.make_glyphs` drew the
images from freely licensed fonts.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cdl_jax.data.readers import npz_files
from cdl_jax.data.stream import Dataset, Split
from cdl_jax.options import Option

_FILE = Path(__file__).parent.parent / "glyph_mini.npz"
_PARTS = {"pretraining": (0, 1, "pre_chars"), "incremental": (2, 3, "cl_chars")}  # train, test, class names

OPTIONS: dict[str, Any] = {
    "part": Option("incremental", "incremental: 20 classes; pretraining: 62 others", choices=tuple(_PARTS)),
}


def load(options: Mapping[str, Any]) -> Dataset:
    """Loads images `[32, 32, 3]` of one part; no class is in both parts.

    "incremental" has 20 classes for a stream. "pretraining" has 62: A-Z, a-z, 0-9.
    """
    train, test, class_names = _PARTS[options["part"]]
    arrays = npz_files.read(_FILE, ("x", "y", "part", class_names))
    images, labels = npz_files.rgb(arrays["x"], what=str(_FILE)), npz_files.labels(arrays["y"], what=str(_FILE))
    splits = (Split(labels[rows], images[rows]) for rows in (arrays["part"] == train, arrays["part"] == test))
    return Dataset(f"glyph_mini_{options['part']}", tuple(str(c) for c in arrays[class_names]), *splits)
