"""Corrupts images in the fifteen ways of ImageNet-C.

The functions and the strengths are those of the package imagecorruptions. They were not compared with the published
images.

Source: Hendrycks and Dietterich, "Benchmarking Neural Network Robustness to Common Corruptions and Perturbations" (ICLR
2019).
"""

from collections.abc import Callable, Sequence
from types import ModuleType

import numpy as np

from cdl_jax.errors import UserError
from cdl_jax.plugins import did_you_mean

NAMES = (
    "gaussian_noise", "shot_noise", "impulse_noise", "defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "snow",
    "frost", "fog", "brightness", "contrast", "elastic_transform", "pixelate", "jpeg_compression",
)  # fmt: skip
SEVERITIES = (1, 2, 3, 4, 5)
MIN_SIDE = 32  # pixels: the package refuses smaller images
_SEEDED = ("impulse_noise", "glass_blur")  # take a seed; the others use NumPy's global generator


def parse_names(text: str) -> tuple[str, ...]:
    """Returns the corruptions that a text lists.

    >>> parse_names("fog,snow")
    ('fog', 'snow')

    Args:
      text: names with commas, or "all".

    Raises:
      UserError: a name is unknown.
    """
    names = NAMES if text == "all" else tuple(name.strip() for name in text.split(","))
    for name in names:
        if name not in NAMES:
            raise UserError(f"corruption {name!r}: {did_you_mean(name, ('all', *NAMES))}")
    return names


def corrupt(images: Sequence[np.ndarray], name: str, severity: int, first: int = 0) -> list[np.ndarray]:
    """Returns corrupted copies of images; the same for the same arguments.

    Args:
      images: uint8 `[height, width, 3]` each, with sides of 32 pixels or more.
      name: one of `NAMES`.
      severity: one of `SEVERITIES`.
      first: number of the first image in its data set; each number has its own random numbers.

    Raises:
      UserError: the package is missing, or an image is too small.
    """
    package = load_package()
    for image in images:
        if min(image.shape[:2]) < MIN_SIDE:
            raise UserError(
                f"corruptions need images of {MIN_SIDE} x {MIN_SIDE} pixels or more, and one has "
                f"{image.shape[1]} x {image.shape[0]}: leave --corruptions out"
            )
    return [
        _with_seed(package.corrupt, image, name, severity, (NAMES.index(name), severity, number))
        for number, image in enumerate(images, first)
    ]


def load_package() -> ModuleType:
    """Returns the package imagecorruptions.

    Raises:
      UserError: it is missing.
    """
    try:
        import imagecorruptions
    except ImportError as error:
        raise UserError(
            f"corruptions need the package imagecorruptions-imaug ({error}): pip install 'cdl-jax[corruptions]', or "
            "pip install imagecorruptions-imaug"
        ) from None
    return imagecorruptions


def _with_seed(function: Callable, image, name, severity, position) -> np.ndarray:
    """Returns the result of a function of the package with a seed.

    NumPy's global generator, which some functions use, gets its earlier state again.
    """
    seed = int(np.random.SeedSequence(position).generate_state(1)[0])
    global_state = np.random.get_state()  # noqa: NPY002
    try:
        np.random.seed(seed)  # noqa: NPY002
        options = {"seed": seed} if name in _SEEDED else {}
        return np.asarray(function(image, severity=severity, corruption_name=name, **options), np.uint8)
    finally:
        np.random.set_state(global_state)  # noqa: NPY002
