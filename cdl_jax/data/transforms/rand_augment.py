"""Applies RandAugment by Pillow on the host.

Operations and magnitudes are timm's.

Source: Cubuk et al., 2020.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import numpy as np

from cdl_jax.errors import UserError

if TYPE_CHECKING:
    import PIL.Image

NUM_UNIFORMS = 5  # uniform numbers per layer: operation, whether it is applied, magnitude, sign, filter


@dataclass(frozen=True)
class Policy:
    """A RandAugment policy: `layers` operations, each applied with `probability`.

    magnitude: strength, in [0, 10].
    std: standard deviation of the normal noise that is added to the magnitude; the sum is clipped to [0, 10].
    layers: number of operations.
    increasing: whether a higher magnitude changes an image more in every operation. Otherwise posterize, solarize and
      the enhancements follow the older scales, on which some change less.
    probability: of each operation.
    """

    magnitude: float
    std: float = 0.0
    layers: int = 2
    increasing: bool = False
    probability: float = 0.5


_FIELDS = {"m": "magnitude", "mstd": "std", "n": "layers", "inc": "increasing", "p": "probability"}


def parse(text: str) -> Policy:
    """Parses the text of a policy.

    >>> parse("rand-m9-mstd0.5-inc1")
    Policy(magnitude=9.0, std=0.5, layers=2, increasing=True, probability=0.5)

    Args:
      text: "rand" and parts: `m` magnitude, `mstd` its standard deviation, `n` layers (2), `inc` 1 for the increasing
        scales, `p` probability (0.5).

    Raises:
      UserError: the text has another form, or a value is out of range.
    """
    kind, *parts = text.split("-")
    values = {}
    for part in parts:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
        if match and match[1] in _FIELDS:
            values[_FIELDS[match[1]]] = float(match[2])
    is_valid = kind == "rand" and "magnitude" in values and len(values) == len(parts)
    if not is_valid or values["magnitude"] > 10 or values.get("probability", 0) > 1 or values.get("layers", 2) % 1:
        raise UserError(
            f"augment.rand_augment={text!r}: write rand-m<0 to 10>, optionally with -mstd<spread>, -n<layers>, -inc1 "
            "and -p<probability>, as in 'rand-m9-mstd0.5-inc1'"
        )
    values["layers"], values["increasing"] = int(values.get("layers", 2)), bool(values.get("increasing"))
    return Policy(**values)


def augment(
    image: "PIL.Image.Image", uniforms: np.ndarray, policy: Policy, fill: tuple[int, int, int], filters: Sequence[Any]
) -> "PIL.Image.Image":
    """Applies the layers of a policy to an RGB image.

    Args:
      image: RGB.
      uniforms: float `[layers * 5]` in [0, 1).
      policy: see `parse`.
      fill: RGB color of the pixels that a rotated, sheared or translated image does not cover.
      filters: Pillow's resampling filters; each such operation draws one of them.
    """
    for u in uniforms.reshape(policy.layers, NUM_UNIFORMS):
        if u[1] >= policy.probability:
            continue
        magnitude = policy.magnitude
        if policy.std:
            magnitude += policy.std * NormalDist().inv_cdf(max(u[2], 2**-53))
        level = min(max(magnitude, 0.0), 10.0) / 10
        operation = OPERATIONS[int(u[0] * len(OPERATIONS))]
        resampling = {"resample": filters[int(u[4] * len(filters))], "fillcolor": fill}
        image = apply(image, operation, level, -1 if u[3] < 0.5 else 1, policy.increasing, resampling)
    return image


OPERATIONS = (
    "auto_contrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "color", "contrast",
    "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y",
)  # fmt: skip


def apply(
    image: "PIL.Image.Image",
    operation: str,
    level: float,
    sign: int,
    increasing: bool,
    resampling: Mapping[str, Any],
) -> "PIL.Image.Image":
    """Applies one operation to an RGB image.

    Args:
      image: RGB.
      operation: of `OPERATIONS`.
      level: strength, in [0, 1].
      sign: 1 or -1, the direction of operations that have one.
      increasing: see `Policy`.
      resampling: `resample` and `fillcolor` of Pillow's geometric transforms.
    """
    from PIL import Image, ImageEnhance, ImageOps

    if operation in ("auto_contrast", "equalize", "invert"):
        functions = {"auto_contrast": ImageOps.autocontrast, "equalize": ImageOps.equalize, "invert": ImageOps.invert}
        return functions[operation](image)
    if operation == "rotate":
        return image.rotate(sign * 30 * level, **resampling)
    if operation == "posterize":
        bits = int(4 * level)
        mask = 256 - 2 ** (8 - (4 - bits if increasing else bits))
        return image.point([i & mask for i in range(256)] * 3)  # ImageOps.posterize refuses 0 bits
    if operation == "solarize":
        threshold = int(256 * level)
        return ImageOps.solarize(image, 256 - threshold if increasing else threshold)
    if operation == "solarize_add":
        added = min(128, int(110 * level))
        return image.point([min(255, i + added) if i < 128 else i for i in range(256)] * 3)
    if operation in ("color", "contrast", "brightness", "sharpness"):
        factor = max(0.1, 1 + sign * 0.9 * level) if increasing else 0.1 + 1.8 * level
        return getattr(ImageEnhance, operation.capitalize())(image).enhance(factor)
    affine = {
        "shear_x": (1, sign * 0.3 * level, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, sign * 0.3 * level, 1, 0),
        "translate_x": (1, 0, sign * 0.45 * level * image.width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, sign * 0.45 * level * image.height),
    }[operation]
    return image.transform(image.size, Image.Transform.AFFINE, affine, **resampling)
