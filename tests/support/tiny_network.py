"""A family of networks that compile in no time: `config.student.family` may name it by its dotted path."""

import flax.linen as nn

from cdl_jax.models.modules.batch_norm import BatchNorm


class Tiny(nn.Module):
    """Logits from the mean of 16 tokens, each of which sees one pixel.

    out: `patch_tokens` `[batch, 16, dim]`; where `pooled`, their mean `features` `[batch, dim]` in place of them.
    norm: tokens are normalised, with running statistics.
    """

    dim: int
    num_classes: int
    pooled: bool = False
    norm: bool = False

    @nn.compact
    def __call__(self, images, train: bool = False):
        step = images.shape[1] // 4
        pixels = images[:, step // 2 :: step, step // 2 :: step].reshape(len(images), 16, 3)
        tokens = nn.Dense(self.dim)(pixels)
        tokens = nn.tanh(BatchNorm(name="norm")(tokens, train) if self.norm else tokens)
        features = tokens.mean(axis=1)
        return nn.Dense(self.num_classes)(features), {"features": features} if self.pooled else {"patch_tokens": tokens}


def build(options, num_classes):
    """The network of an option section."""
    return Tiny(options.dim, num_classes, options.get("pooled", False), options.get("norm", False))
