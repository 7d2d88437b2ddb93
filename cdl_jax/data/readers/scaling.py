"""Scales pixel values of arrays to 8 bits."""

import numpy as np

from cdl_jax.errors import UserError

WHITE = 65_535  # of 16 bits
# Numbers up to this maximum could also be gray levels of another scale, such as the 16 of scikit-learn's digits.
_DARK = 16
_MAX_TEXT = 100


def white_level(values: np.ndarray) -> float | None:
    """Returns the value of an array that stands for white.

    >>> white_level(np.array([0.0, 0.9])), white_level(np.array([0, 200])), white_level(np.array([0, 9000], ">u2"))
    (1.0, 255.0, 65535.0)

    Args:
      values: gray levels of any shape and real dtype, in any byte order.

    Returns:
      1 of bool, and of floating point in [0, 1]. 255 of floating point in [0, 255], and of uint8 and other integers up
      to 255. 65,535 of uint16. None if the array is empty or zero, and so fits each scale.

    Raises:
      UserError: the values are outside of these ranges, are NaN, have a maximum that belongs to another scale as well
        (see `_DARK`), or are no numbers.
    """
    kind = values.dtype.kind
    if kind not in "bfiu":
        raise UserError(f"values of type {_name(values)}: save uint8")
    low, high = (values.min().item(), values.max().item()) if values.size else (0, 0)
    if kind == "f":
        slack = 1e-3  # what arithmetic in float16 leaves
        if not -slack <= low <= high <= 255 + slack or 1 + slack < high <= _DARK:
            raise UserError(f"floating-point values from {low:g} to {high:g}: scale them to [0, 1] or to [0, 255]")
        if high <= 0:
            return None
        return 1.0 if high <= 1 + slack else 255.0
    if low == high == 0:
        return None
    if kind == "b":
        return 1.0
    is_deep = kind == "u" and values.itemsize == 2
    if is_deep and high > 255:
        return float(WHITE)
    if is_deep or low < 0 or high > 255 or high <= _DARK:
        raise UserError(
            f"{_name(values)} values from {low} to {high} with an unknown white level: save uint8 with values up to "
            "255, or uint16 up to 65535"
        )
    return 255.0


def scale(values: np.ndarray, white: float) -> np.ndarray:
    """Scales values in [0, white] to uint8 in [0, 255], a part at a time.

    uint8 is returned as it is for white 255.

    >>> scale(np.array([0, 2, 4]), 4).tolist()
    [0, 128, 255]
    """
    if white == 255 and values.dtype.kind in "iu":
        return values.astype(np.uint8, copy=False)
    result = np.empty(values.shape, np.uint8)
    step = max(1, 2**20 * len(values) // max(1, values.size))
    for start in range(0, len(values), step):
        part = values[start : start + step].astype(np.float64)
        result[start : start + step] = np.rint(np.clip(part * (255 / white), 0, 255))
    return result


def _name(values) -> str:
    return " ".join(str(values.dtype.newbyteorder("=")).split())[:_MAX_TEXT]
