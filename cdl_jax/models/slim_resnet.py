"""Residual networks for small images in DKT.

There are two or more stages, each twice as wide as the stage before. The networks are the slim ResNet-18 (Lopez-Paz and
Ranzato, 2017), ResNet-32 whose shortcuts have no weights (He et al., 2016, option A), and ResNet-18 and -34 with a
first convolution for images of 32 pixels.
"""

from ml_collections import ConfigDict

from cdl_jax.errors import UserError
from cdl_jax.models.modules.conv import Backbone, he_in
from cdl_jax.models.modules.heads import torch_kernel
from cdl_jax.models.modules.network_options import shared_options
from cdl_jax.models.resnet import Stages, Stem, Tail
from cdl_jax.options import Option

OPTIONS = {
    **shared_options("slim_resnet", image_size=32),
    "depths": Option((2, 2, 2, 2), "blocks of each stage; all stages but the first halve the image", minimum=1),
    "width": Option(20, "channels of the first stage", minimum=1),
    "shortcut": Option(
        "projection",
        "shortcut where the shape changes; padded: every second pixel, and channels of zeros",
        choices=("projection", "padded"),
    ),
    "init": Option(
        "torch",
        "initial convolutions; torch: U(-a, a), a = fan_in^-1/2; he: N(0, 2 / fan_in); classifiers are torch's",
        choices=("torch", "he"),
    ),
}

SIZES = {
    "slim_resnet18": {},
    "resnet32_padded": {"depths": (5, 5, 5), "width": 16, "shortcut": "padded", "init": "he"},
    "resnet18_32px": {"width": 64},
    "resnet34_32px": {"width": 64, "depths": (3, 4, 6, 3)},
}

_INIT = {"torch": torch_kernel, "he": he_in}


def build(options: ConfigDict, num_classes: int) -> Backbone:
    """Returns the network of an option section (see `OPTIONS`).

    All stages but the last are its stem.

    Raises:
      UserError: there are fewer than two stages.
    """
    if len(options.depths) < 2:
        raise UserError(f"network.depths={tuple(options.depths)}: give two stages or more")
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
