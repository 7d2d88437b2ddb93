"""RandAugment (Cubuk et al., 2020) with the operations and magnitudes of timm's policies, by Pillow on the host."""

import re
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

from cdl_jax.errors import UserError

NUM_UNIFORMS = 5  # uniform numbers a layer: operation, whether at all, magnitude, sign, filter


@dataclass(frozen=True)
class Policy:
    """What a policy's text says: `layers` operations after each other, each with the given `probability`.

    magnitude: of 10. std: of the normal number added to it, the sum cut to [0, 10]. increasing: whether a higher
      magnitude changes a picture more in every operation; else posterize, solarize and the enhancements follow the
      older scales, on which some of them change less.
    """

    magnitude: float
    std: float = 0.0
    layers: int = 2
    increasing: bool = False
    probability: float = 0.5


_FIELDS = {"m": "magnitude", "mstd": "std", "n": "layers", "inc": "increasing", "p": "probability"}


def parse(text: str) -> Policy:
    """The policy of a text such as "rand-m9-mstd0.5-inc1".

    Parts: `m` magnitude, `mstd` its spread, `n` layers (2), `inc` 1 for the increasing scales, `p` probability (0.5).

    Raises:
      UserError: another text, or a value out of range.
    """
    kind, *parts = text.split("-")
    found = {}
    for part in parts:
        match = re.fullmatch(r"([a-z]+)(\d+(?:\.\d+)?)", part)
        if match and match[1] in _FIELDS:
            found[_FIELDS[match[1]]] = float(match[2])
    right = kind == "rand" and "magnitude" in found and len(found) == len(parts)
    if not right or found["magnitude"] > 10 or found.get("probability", 0) > 1 or found.get("layers", 2) % 1:
        raise UserError(
            f"augment.rand_augment={text!r}: write rand-m<0 to 10> and, if you like, -mstd<spread>, -n<layers>, -inc1 "
            "and -p<probability>, as in 'rand-m9-mstd0.5-inc1'"
        )
    found["layers"], found["increasing"] = int(found.get("layers", 2)), bool(found.get("increasing"))
    return Policy(**found)


def augment(picture, uniforms: np.ndarray, policy: Policy, fill: tuple[int, int, int], filters):
    """An RGB Pillow picture after the policy's layers.

    Args:
      uniforms: `[layers * 5]` in [0, 1).
      fill: the colour of what a turned, sheared or shifted picture leaves open.
      filters: Pillow's resampling filters, one of which each such operation takes.
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
        picture = apply(picture, operation, level, -1 if u[3] < 0.5 else 1, policy.increasing, resampling)
    return picture


OPERATIONS = (
    "auto_contrast", "equalize", "invert", "rotate", "posterize", "solarize", "solarize_add", "color", "contrast",
    "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y",
)  # fmt: skip


def apply(picture, operation: str, level: float, sign: int, increasing: bool, resampling):
    """One operation of `OPERATIONS` at a `level` in [0, 1]; `sign`, 1 or -1, is the direction where there are two."""
    from PIL import Image, ImageEnhance, ImageOps

    if operation in ("auto_contrast", "equalize", "invert"):
        plain = {"auto_contrast": ImageOps.autocontrast, "equalize": ImageOps.equalize, "invert": ImageOps.invert}
        return plain[operation](picture)
    if operation == "rotate":
        return picture.rotate(sign * 30 * level, **resampling)
    if operation == "posterize":
        bits = int(4 * level)
        kept = 256 - 2 ** (8 - (4 - bits if increasing else bits))
        return picture.point([i & kept for i in range(256)] * 3)  # ImageOps.posterize refuses to keep no bit
    if operation == "solarize":
        threshold = int(256 * level)
        return ImageOps.solarize(picture, 256 - threshold if increasing else threshold)
    if operation == "solarize_add":
        added = min(128, int(110 * level))
        return picture.point([min(255, i + added) if i < 128 else i for i in range(256)] * 3)
    if operation in ("color", "contrast", "brightness", "sharpness"):
        factor = max(0.1, 1 + sign * 0.9 * level) if increasing else 0.1 + 1.8 * level
        return getattr(ImageEnhance, operation.capitalize())(picture).enhance(factor)
    affine = {
        "shear_x": (1, sign * 0.3 * level, 0, 0, 1, 0),
        "shear_y": (1, 0, 0, sign * 0.3 * level, 1, 0),
        "translate_x": (1, 0, sign * 0.45 * level * picture.width, 0, 1, 0),
        "translate_y": (1, 0, 0, 0, 1, sign * 0.45 * level * picture.height),
    }[operation]
    return picture.transform(picture.size, Image.Transform.AFFINE, affine, **resampling)
