"""A user's family of networks that compiles quickly.

`config.student.family=tests.support.tiny_network` selects it.
"""

import flax.linen as nn

from cdl_jax.models.modules.batch_norm import BatchNorm

OPTIONS = {"dim": 4, "pooled": False, "norm": False}
SIZES = {}
torch_name = None


class Tiny(nn.Module):
    """Computes logits from the mean of 16 tokens, each of one pixel.

    The named output is `patch_tokens` `[batch, 16, dim]`, or with `pooled` their mean `features` `[batch, dim]`.

    Attributes:
      dim: width of a token.
      num_classes: number of logits.
      pooled: whether `features` replaces `patch_tokens`, default False.
      norm: whether tokens go through a batch norm with running statistics, default False.
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
    """Returns the network of an option section."""
    return Tiny(options.dim, num_classes, options.get("pooled", False), options.get("norm", False))
