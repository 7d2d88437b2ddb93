"""Residual and wide residual networks for large images (He et al., 2016).

The branches of a branched network share the first two stages.
"""

from ml_collections import ConfigDict

from cdl_jax.models import resnet
from cdl_jax.models.modules.conv import Backbone
from cdl_jax.options import change_defaults

OPTIONS = change_defaults(
    resnet.OPTIONS, family="resnet_imagenet", depths=(2, 2, 2, 2), widths=(64, 128, 256, 512), image_size=224
)

_DEEP = {"resnet50": (3, 4, 6, 3), "resnet101": (3, 4, 23, 3), "resnet152": (3, 8, 36, 3)}
SIZES = {
    "resnet18": {},
    "resnet34": {"depths": (3, 4, 6, 3)},
    **{name: {"block": "bottleneck", "depths": depths} for name, depths in _DEEP.items()},
    "wide_resnet14_10": {"block": "bottleneck", "depths": (1, 1, 1, 1), "inner_multiplier": 10},
    "wide_resnet101_2": {"block": "bottleneck", "depths": _DEEP["resnet101"], "inner_multiplier": 2},
}

torch_name = None  # weights are read only under the names of this package


def build(options: ConfigDict, num_classes: int) -> Backbone:
    """Returns the network of an option section (see `OPTIONS`).

    Raises:
      UserError: options do not fit together.
    """
    return resnet.build_residual(options, num_classes, stages=4, shared=2, large=True)
