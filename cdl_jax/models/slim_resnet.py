"""Residual networks for small images in DKT: any number of stages, each twice as wide as the one before.

The slim ResNet-18 (Lopez-Paz and Ranzato, 2017), ResNet-32 whose shortcuts have no weights (He et al., 2016, option A),
and ResNet-18 and -34 with a first convolution for images of 32 pixels.
"""

from ml_collections import ConfigDict

from cdl_jax.errors import UserError
from cdl_jax.models.modules.conv import Backbone, he_in
from cdl_jax.models.modules.heads import torch_kernel
from cdl_jax.models.resnet import Stages, Stem, Tail

OPTIONS = {
    "family": "slim_resnet",
    "depths": (2, 2, 2, 2),  # blocks of each stage; all stages but the first halve the image
    "width": 20,  # channels of the first stage
    "shortcut": "projection",  # if the shape changes; or "padded": every second pixel, and channels of zeros
    "init": "torch",  # of convolutions: U(-a, a), a = fan_in^-1/2; or "he": N(0, 2 / fan_in). Classifiers: torch's
    "image_size": 32,
    "weights": "random",
    "weights_key": "",  # network of a checkpoint with more than one, such as "model_ema"
}

SIZES = {
    "slim_resnet18": {},
    "resnet32_padded": {"depths": (5, 5, 5), "width": 16, "shortcut": "padded", "init": "he"},
    "resnet18_32px": {"width": 64},
    "resnet34_32px": {"width": 64, "depths": (3, 4, 6, 3)},
}

_INIT = {"torch": torch_kernel, "he": he_in}


def build(options: ConfigDict, num_classes: int) -> Backbone:
    """Returns the network of an option section (see `OPTIONS`). All stages but the last are its stem.

    Raises:
      UserError: an option is out of range.
    """
    if options.shortcut not in ("projection", "padded"):
        raise UserError(f"network.shortcut={options.shortcut!r}: use 'projection' or 'padded'")
    if options.init not in _INIT:
        raise UserError(f"network.init={options.init!r}: use 'torch' or 'he'")
    if len(options.depths) < 2 or min(options.depths) < 1 or options.width < 1:
        raise UserError(f"network.depths={tuple(options.depths)}, width={options.width}: give two stages or more")
    numbers = range(1, len(options.depths) + 1)
    kernel_init = _INIT[options.init]

    def build_stages(indices):
        return Stages(
            numbers=tuple(numbers[indices]),
            depths=tuple(options.depths[indices]),
            widths=tuple(options.width * 2 ** (i - 1) for i in numbers[indices]),
            padded=options.shortcut == "padded",
            kernel_init=kernel_init,
        )

    stem = Stem(build_stages(slice(0, -1)), options.width, kernel_init=kernel_init)
    return Backbone(stem, Tail(build_stages(slice(-1, None)), num_classes))


def torch_name(path: str) -> str:
    """Returns the authors' name of a module.

    >>> torch_name("stem/stages/layer2_0/shortcut_bn")
    'layer2.0.shortcut.1'
    """
    *stages, last = path.split("/")[1:]
    last = {"shortcut": "shortcut.0", "shortcut_bn": "shortcut.1", "classifier": "linear"}.get(last, last)
    return ".".join([stage.replace("_", ".") for stage in stages[1:]] + [last])
