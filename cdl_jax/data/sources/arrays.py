"""Loads arrays of yours: an `.npz` with x_train, y_train, x_test and y_test."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cdl_jax.data.readers import npz_files
from cdl_jax.data.stream import Dataset, Split
from cdl_jax.errors import UserError
from cdl_jax.runtime import paths

OPTIONS: dict[str, Any] = {}


def load(options: Mapping[str, Any]) -> Dataset:
    """Loads the arrays of an `.npz`.

    Images are `[n, height, width]` or `[n, height, width, 1 or 3]` of a dtype that `decoding.from_array` takes. Labels
    are integers from 0, `[n]` or `[n, 1]`. `class_names`, text `[classes]`, is optional; without it the names are the
    labels. Training and test images may differ in size.

    Raises:
      UserError: the path is empty, the file is missing, or an array has another shape or dtype.
    """
    path = options["path"]
    if not path:
        raise UserError(
            "the arrays source reads an .npz of yours (x_train, y_train, x_test, y_test): set data.path to it"
        )
    path = paths.resolve(path, "data.path")
    arrays = npz_files.read(path, ("x_train", "y_train", "x_test", "y_test"), optional=("class_names",))
    train, test = (
        Split(
            npz_files.labels(arrays[f"y_{part}"], what=f"{path}: y_{part}"),
            npz_files.rgb(arrays[f"x_{part}"], what=f"{path}: x_{part}"),
        )
        for part in ("train", "test")
    )
    highest = max((int(split.labels.max()) for split in (train, test) if len(split)), default=-1)
    if highest >= len(train) + len(test):
        raise UserError(f"{path}: label {highest} among {len(train) + len(test)} images; number classes from 0")
    class_names = arrays.get("class_names", np.arange(highest + 1))
    if class_names.ndim != 1:
        raise UserError(f"{path}: class_names must be text [classes], not {list(class_names.shape)}")
    return Dataset(path.stem, tuple(str(name) for name in class_names), train, test)
