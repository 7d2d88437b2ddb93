"""A family of networks that compile in no time: `config.student.family` may name it by its dotted path."""

import flax.linen as nn


class Tiny(nn.Module):
    """Logits from the mean of 16 tokens, each of which sees one pixel; `patch_tokens` `[batch, 16, dim]`."""

    dim: int
    num_classes: int

    @nn.compact
    def __call__(self, images, train: bool = False):
        step = images.shape[1] // 4
        pixels = images[:, step // 2 :: step, step // 2 :: step].reshape(len(images), 16, 3)
        tokens = nn.tanh(nn.Dense(self.dim)(pixels))
        return nn.Dense(self.num_classes)(tokens.mean(axis=1)), {"patch_tokens": tokens}


def build(options, num_classes):
    """The network of an option section."""
    return Tiny(options.dim, num_classes)
