"""Modules that weight the outputs of peers: OKDDip's attention and ONE's gate."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdl_jax.models.modules.batch_norm import BatchNorm
from cdl_jax.models.modules.conv import global_pool
from cdl_jax.models.modules.heads import torch_bias, torch_kernel


class Attention(nn.Module):
    """Attention between peers (OKDDip, arXiv 1912.00350).

    `A = softmax_b(query_a . key_b)`, without a scale. Query and key are linear maps without bias to `dim // divisor`
    numbers (at least one). All peers share them.

    Attributes:
      divisor: of the features' width, default 8.
      normal_init: draw the maps from N(0, 0.01^2) as the authors' VGG does. Default: torch's linear layer.
    """

    divisor: int = 8
    normal_init: bool = False

    @nn.compact
    def __call__(self, features: jax.Array, train: bool = False) -> jax.Array:
        """Returns the attention weights.

        Args:
          features: float32 `[batch, peers, dim]`.
          train: unused.

        Returns:
          float32 `[batch, peers, peers]`. Row a has the weights of peer a's target, its own weight included; rows sum
          to 1.
        """
        init = nn.initializers.normal(0.01) if self.normal_init else torch_kernel
        width = max(features.shape[-1] // self.divisor, 1)
        query, key = (
            nn.Dense(width, use_bias=False, kernel_init=init, name=name)(features) for name in ("query", "key")
        )
        return nn.softmax(jnp.einsum("bad,bcd->bac", query, key), axis=-1)


class Gate(nn.Module):
    """Weights of the peers' logits, from the feature map that all peers share.

    `softmax(relu(batch_norm(linear(mean over the map))))` (ONE, arXiv 1806.04606).

    Attributes:
      peers: number of peers.
      initial: "torch": torch's linear layer. "zero_bias": the same with a zero bias. "normal": kernel from N(0, 0.01^2)
        and a zero bias.
    """

    peers: int
    initial: str = "torch"

    @nn.compact
    def __call__(self, shared: jax.Array, train: bool = False) -> jax.Array:
        """Returns the gate's weights.

        Args:
          shared: float32 `[batch, height, width, channels]`.
          train: whether the batch norm uses, and updates, the statistics of the batch.

        Returns:
          float32 `[batch, peers]`; rows sum to 1.
        """
        pooled = global_pool(shared)
        kernel = nn.initializers.normal(0.01) if self.initial == "normal" else torch_kernel
        bias = torch_bias(pooled.shape[-1]) if self.initial == "torch" else nn.initializers.zeros
        x = nn.Dense(self.peers, kernel_init=kernel, bias_init=bias, name="linear")(pooled)
        return nn.softmax(nn.relu(BatchNorm(name="norm")(x, train)), axis=-1)
