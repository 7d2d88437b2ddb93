"""BigGAN for small images: a class-conditional generator and discriminator.

Brock et al., 2019, at 32 x 32 pixels. It is a package because each file of `cdl_jax/models/` is a family of classifiers
that a config names.
"""

from cdl_jax.models.biggan.discriminator import Discriminator, DiscriminatorOutput
from cdl_jax.models.biggan.generator import ConditionalBatchNorm, Generator

__all__ = ["ConditionalBatchNorm", "Discriminator", "DiscriminatorOutput", "Generator"]
