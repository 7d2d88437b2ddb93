"""Networks of all families by name."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

from cdl_jax import plugins
from cdl_jax.errors import UserError
from cdl_jax.models import (
    clip,
    deit,
    densenet,
    efficientnet_lite,
    regnet,
    resnet,
    resnet_imagenet,
    slim_resnet,
    vgg,
    vit,
)
from cdl_jax.options import Option, change_defaults

CONVOLUTIONAL = (resnet, vgg, densenet, resnet_imagenet, regnet, efficientnet_lite, slim_resnet)
FAMILIES = (vit, deit, clip, *CONVOLUTIONAL)


def network_options(name: str, families: Sequence[ModuleType] = FAMILIES, **changes: Any) -> dict[str, Option]:
    """Declares the options of a named network.

    Args:
      name: a key of the `SIZES` of a family.
      families: modules of `cdl_jax.models` to search.
      **changes: other defaults.

    Raises:
      UserError: no family has a network of this name.

    >>> options = network_options("vit_s16")
    >>> [options[key].default for key in ("family", "dim", "heads")]
    ['vit', 384, 6]
    """
    for family in families:
        if name in family.SIZES:
            return change_defaults(family.OPTIONS, **{**family.SIZES[name], **changes})
    known = [size for family in families for size in family.SIZES]
    raise UserError(f"no network of the name {name!r}: {plugins.did_you_mean(name, known)}")
