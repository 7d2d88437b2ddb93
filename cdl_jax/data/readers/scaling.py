"""Scales pixel values of arrays to 8 bits."""

import numpy as np

from cdl_jax.errors import UserError

WHITE = 65_535  # of 16 bits
# Numbers up to this maximum could also be gray levels of another scale, such as the 16 of scikit-learn's digits.
_DARK = 16
_MAX_TEXT = 100


def from_arrays(*arrays: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns pixel values of any real dtype as uint8, by one rule for all arrays.

    >>> [part.tolist() for part in from_arrays(np.array([0, 65535], np.uint16), np.array([257], np.uint16))]
    [[0, 255], [1]]

    bool: 0 and 255. Floating point: as in `from_floats`. uint16: v * 255 / 65535. uint8 and other integers: in
    [0, 255], unchanged. The byte order has no effect.

    Args:
      *arrays: of one kind of numbers and any shape, such as the training and the test images.

    Raises:
      UserError: the values have no known scale, a dtype is not one of numbers, or the arrays need different rules.
    """
    for values in arrays:
        if values.dtype.kind not in "bfiu":
            raise UserError(f"values of type {_name(values)}: save uint8")
    filled = [values for values in arrays if values.size]
    kinds = {_kind(values): _name(values) for values in filled}
    if len(kinds) > 1:
        raise UserError(f"values of types {' and '.join(kinds.values())} need different scales: save both as uint8")
    kind = next(iter(kinds), "i")
    if kind == "b":
        return tuple(values.astype(np.uint8) * np.uint8(255) for values in arrays)
    if kind == "f":
        white = _white_of_floats(filled)
        return tuple(scale(values, white) for values in arrays)
    low = min((int(values.min()) for values in filled), default=0)
    high = max((int(values.max()) for values in filled), default=0)
    if kind == "u2" and (high > 255 or not high):
        return tuple(scale(values, WHITE) for values in arrays)
    if kind == "u2" or low < 0 or high > 255 or 0 < high <= _DARK:
        raise UserError(
            f"{' and '.join(dict.fromkeys(map(_name, filled)))} values from {low} to {high} with an unknown white "
            "level: save uint8 with values up to 255, or uint16 up to 65535"
        )
    return tuple(values if values.dtype == np.uint8 else values.astype(np.uint8) for values in arrays)


def from_floats(values: np.ndarray) -> np.ndarray:
    """Returns floating-point gray levels as uint8 of the same shape.

    >>> from_floats(np.array([0.0, 0.5, 1.0])).tolist()
    [0, 128, 255]

    Args:
      values: in [0, 1] or in [0, 255], decided by the largest.

    Raises:
      UserError: the values are outside of these ranges, are NaN, or have a maximum between them (see `_DARK`).
    """
    return scale(values, _white_of_floats([values] if values.size else []))


def scale(values: np.ndarray, white: float) -> np.ndarray:
    """Returns values in [0, white] as uint8 in [0, 255], a part at a time.

    >>> scale(np.array([0, 2, 4]), 4).tolist()
    [0, 128, 255]
    """
    result = np.empty(values.shape, np.uint8)
    step = max(1, 2**20 * len(values) // max(1, values.size))
    for start in range(0, len(values), step):
        part = values[start : start + step].astype(np.float64)
        result[start : start + step] = np.rint(np.clip(part * (255 / white), 0, 255))
    return result


def _white_of_floats(arrays) -> float:
    low = float(np.min([values.min() for values in arrays])) if arrays else 0.0  # NaN stays
    high = float(np.max([values.max() for values in arrays])) if arrays else 0.0
    slack = 1e-3  # what arithmetic in float16 leaves
    if not -slack <= low <= high <= 255 + slack or 1 + slack < high <= _DARK:
        raise UserError(f"floating-point values from {low:g} to {high:g}: scale them to [0, 1] or to [0, 255]")
    return 1.0 if high <= 1 + slack else 255.0


def _kind(values) -> str:
    """Returns the rule of an array: "b", "f", "u2" or "i"."""
    if values.dtype.kind == "u" and values.itemsize == 2:
        return "u2"
    return "i" if values.dtype.kind == "u" else values.dtype.kind


def _name(values) -> str:
    return " ".join(str(values.dtype.newbyteorder("=")).split())[:_MAX_TEXT]
