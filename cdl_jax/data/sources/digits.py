"""Loads the 1,797 handwritten digits of scikit-learn, which need no download."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cdl_jax.data.readers import npz_files
from cdl_jax.data.stream import Dataset, Split
from cdl_jax.errors import UserError

OPTIONS: dict[str, Any] = {}


def load(options: Mapping[str, Any]) -> Dataset:
    """Loads images `[8, 8, 3]` of 10 classes.

    Every fifth image of a class is a test image. Gray levels 0 to 16 become 0 to 255. Source: UCI, Optical Recognition
    of Handwritten Digits (CC BY 4.0).

    Raises:
      UserError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError:
        raise UserError("the digits source needs scikit-learn: pip install scikit-learn") from None
    levels, labels = load_digits().images, load_digits().target.astype(np.int32)
    images = npz_files.rgb(np.round(levels * 255 / 16).astype(np.uint8), what="digits")
    is_test = np.zeros(len(labels), bool)
    for digit in range(10):
        is_test[np.flatnonzero(labels == digit)[4::5]] = True
    train, test = (Split(labels[rows], images[rows]) for rows in (~is_test, is_test))
    return Dataset("digits", tuple("0123456789"), train, test)
