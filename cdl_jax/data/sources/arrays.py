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

    Images are `[n, height, width]` or `[n, height, width, 1 or 3]` of a dtype that `scaling.white_level` takes. Labels
    are integers from 0, `[n]` or `[n, 1]`. `class_names`, text `[classes]`, is optional; without it the names are the
    labels. Training and test images may differ in size, but have one scale of values.

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
    labels = [npz_files.labels(arrays[name], what=f"{path}: {name}") for name in ("y_train", "y_test")]
    images = npz_files.rgb_by_one_rule({name: arrays.pop(name) for name in ("x_train", "x_test")}, where=str(path))
    train, test = map(Split, labels, images)
    highest = max((int(split.labels.max()) for split in (train, test) if len(split)), default=-1)
    if highest >= len(train) + len(test):
        raise UserError(f"{path}: label {highest} among {len(train) + len(test)} images; number classes from 0")
    class_names = npz_files.names(arrays.get("class_names", np.arange(highest + 1)), what=f"{path}: class_names")
    return Dataset(path.stem, class_names, train, test)
