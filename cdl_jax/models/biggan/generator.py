"""BigGAN's generator: from noise and labels to images."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdl_jax.errors import UserError
from cdl_jax.models.modules.batch_norm import BatchNorm
from cdl_jax.models.modules.layers import ReadsParams
from cdl_jax.models.modules.spectral_norm import SpectralConv, SpectralDense, normal_init

_FIRST_SIDE = 4  # pixels of a side of the first map


class ConditionalBatchNorm(ReadsParams, nn.Module):
    """Batch norm of maps with a gain and a bias for each class.

    Returns `normalized * (1 + gain[label]) + bias[label]`. The tables start at N(0, 0.02^2). The running statistics are
    those of `batch_norm.BatchNorm`.
    """

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array, train: bool) -> jax.Array:
        shape = (self.num_classes, x.shape[-1])
        gain, bias = self.param("gain", normal_init, shape), self.param("bias", normal_init, shape)
        x = BatchNorm(affine=False, name="norm")(x, train)
        return x * (1 + gain[labels])[:, None, None] + bias[labels][:, None, None]


class Block(nn.Module):
    """Two convolutions and a shortcut that double the height and width of maps."""

    num_classes: int

    @nn.compact
    def __call__(self, x: jax.Array, labels: jax.Array, train: bool) -> jax.Array:
        channels = x.shape[-1]
        y = nn.relu(ConditionalBatchNorm(self.num_classes, name="norm1")(x, labels, train))
        y = SpectralConv(channels, name="conv1")(_double(y), train)
        y = nn.relu(ConditionalBatchNorm(self.num_classes, name="norm2")(y, labels, train))
        y = SpectralConv(channels, name="conv2")(y, train)
        # A 1x1 convolution gives the same before the enlargement, for a quarter of the products.
        return y + _double(SpectralConv(channels, 1, name="shortcut")(x, train))


class Generator(nn.Module):
    """BigGAN's generator: `apply(variables, z, labels, train)` returns images.

    Variables are "params", "batch_stats" and "spectral". With `train` the last two change, so they must be mutable.
    Labels select gains and biases of the batch norms; there is no shared embedding and no attention.

    Attributes:
      width: a quarter of the channels of every map; 64 in the published runs.
      num_classes: number of classes.
      z_dim: channels of the noise.
      image_size: side of the images in pixels: 4 times a power of two, default 32.
    """

    width: int
    num_classes: int
    z_dim: int
    image_size: int = 32

    @nn.compact
    def __call__(self, z: jax.Array, labels: jax.Array, train: bool) -> jax.Array:
        """Computes images.

        Args:
          z: noise, float32 `[batch, z_dim]`.
          labels: int32 `[batch]`.
          train: whether batch norms use the statistics of the batch, and running statistics and `u` are updated.

        Returns:
          float32 `[batch, image_size, image_size, 3]` in [-1, 1].

        Raises:
          UserError: the image size has another form.
        """
        channels, doublings = 4 * self.width, (self.image_size // _FIRST_SIDE).bit_length() - 1
        if doublings < 1 or self.image_size != _FIRST_SIDE * 2**doublings:
            raise UserError(f"image_size={self.image_size} of a BigGAN: use 8, 16, 32 or another power of two")
        # Rows of the weight are in the order of torch's maps, channel first.
        x = SpectralDense(channels * _FIRST_SIDE**2, name="linear")(z, train)
        x = jnp.moveaxis(x.reshape(-1, channels, _FIRST_SIDE, _FIRST_SIDE), 1, -1)
        for i in range(doublings):
            x = Block(self.num_classes, name=f"blocks_{i}")(x, labels, train)
        x = nn.relu(BatchNorm(name="norm")(x, train))
        return jnp.tanh(SpectralConv(3, name="conv")(x, train))


def _double(x):
    """Doubles the height and width of maps: a pixel becomes four equal ones."""
    batch, height, width, channels = x.shape
    x = jnp.broadcast_to(x[:, :, None, :, None], (batch, height, 2, width, 2, channels))
    return x.reshape(batch, 2 * height, 2 * width, channels)
