"""BigGAN's discriminator: from images and labels to scores."""

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from cdl_jax.models.modules.spectral_norm import SpectralConv, SpectralDense, SpectralEmbed


@struct.dataclass
class DiscriminatorOutput:
    """Outputs of a discriminator for a batch of images.

    Attributes:
      score: float32 `[batch]`, above 0 for images that look real.
      pooled: float32 `[batch, channels]`, the sum of the last map over all positions.
      features: float32 `[batch, dim]`, the output of the feature head; None without one.
    """

    score: jax.Array
    pooled: jax.Array
    features: jax.Array | None = None


class Block(nn.Module):
    """Two convolutions and a shortcut on `[batch, height, width, inputs]`.

    Attributes:
      channels: of the output.
      relu_first: whether a ReLU is in front of the first convolution, default True.
      halve: whether the mean of 2 x 2 pixels halves height and width, and a 1x1 convolution is in the shortcut. Default
        False: the shortcut is the input itself.
    """

    channels: int
    relu_first: bool = True
    halve: bool = False

    @nn.compact
    def __call__(self, x: jax.Array, train: bool) -> jax.Array:
        y = nn.relu(x) if self.relu_first else x
        y = nn.relu(SpectralConv(self.channels, name="conv1")(y, train))
        y = SpectralConv(self.channels, name="conv2")(y, train)
        if not self.halve:
            return x + y
        # A 1x1 convolution gives the same before the mean, for a quarter of the products.
        return _halve(y) + SpectralConv(self.channels, 1, name="shortcut")(_halve(x), train)


class Discriminator(nn.Module):
    """BigGAN's discriminator with a projection of the class (Miyato and Koyama, 2018).

    `apply(variables, images, labels, train)` returns a `DiscriminatorOutput`. Variables are "params" and "spectral".
    With `train` the latter changes, so it must be mutable. Four blocks compute a map, the first two of which halve it.
    The score is `w . h + b + e[label] . h`, where h is the sum of the rectified map over all positions.

    Attributes:
      width: a quarter of the channels of every map; 64 in the published runs.
      num_classes: number of classes.
      feature_head: widths of two linear layers without an activation between them, such as (1024, 512) in KD-DLGAN.
        They map h to `features`. Default (): no head.
    """

    width: int
    num_classes: int
    feature_head: tuple[int, ...] = ()

    def setup(self):
        channels = 4 * self.width
        self.blocks = [
            Block(channels, relu_first=False, halve=True),
            Block(channels, halve=True),
            Block(channels),
            Block(channels),
        ]
        self.linear = SpectralDense(1)
        self.embed = SpectralEmbed(self.num_classes, channels)
        self.head = [SpectralDense(dim) for dim in self.feature_head]

    def __call__(self, images: jax.Array, labels: jax.Array, train: bool) -> DiscriminatorOutput:
        """Computes scores and features.

        Args:
          images: float32 `[batch, height, width, 3]` in [-1, 1]; height and width are multiples of 4.
          labels: int32 `[batch]`.
          train: whether `u` is updated.
        """
        pooled = self._pool(images, train)
        score = self.linear(pooled, train)[:, 0] + (self.embed(labels, train) * pooled).sum(axis=-1)
        features = pooled
        for layer in self.head:
            features = layer(features, train)
        return DiscriminatorOutput(score, pooled, features if self.head else None)

    def class_scores(self, images: jax.Array) -> jax.Array:
        """Computes scores with every label, in evaluation, `[batch, num_classes]`."""
        pooled = self._pool(images, train=False)
        table = self.embed(jnp.arange(self.num_classes), train=False)
        products = jnp.matmul(pooled, table.T, precision=jax.lax.Precision.HIGHEST)
        return self.linear(pooled, train=False) + products

    def _pool(self, images, train):
        x = images
        for block in self.blocks:
            x = block(x, train)
        return nn.relu(x).sum(axis=(1, 2))


def _halve(x):
    """Halves the height and width of maps by the mean of 2 x 2 pixels."""
    batch, height, width, channels = x.shape
    return x.reshape(batch, height // 2, 2, width // 2, 2, channels).mean(axis=(2, 4))
