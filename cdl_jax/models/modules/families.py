"""Named networks of all families."""

from cdl_jax import plugins
from cdl_jax.errors import UserError
from cdl_jax.models import deit, densenet, efficientnet_lite, regnet, resnet, resnet_imagenet, slim_resnet, vgg, vit

CONVOLUTIONAL = (resnet, vgg, densenet, resnet_imagenet, regnet, efficientnet_lite, slim_resnet)
FAMILIES = (vit, deit, *CONVOLUTIONAL)


def variant(name: str, families=FAMILIES) -> dict:
    """The option section of a named network of one of the families.

    Raises:
      UserError: no family has it.
    """
    known = [size for family in families for size in family.SIZES]
    for family in families:
        if name in family.SIZES:
            return family.variant(name)
    raise UserError(f"no network of the name {name!r}: {plugins.did_you_mean(name, known)}")
