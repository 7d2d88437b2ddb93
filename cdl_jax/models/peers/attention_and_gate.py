"""How the outputs of several peers become one another's targets: the attention of OKDDip, the gate of ONE."""

import flax.linen as nn
import jax.numpy as jnp

from cdl_jax.models.modules.batch_norm import BatchNorm
from cdl_jax.models.modules.conv import global_pool
from cdl_jax.models.modules.heads import torch_bias, torch_kernel


class Attention(nn.Module):
    """Who listens to whom among peers (OKDDip): features `[batch, peers, dim]` to weights `[batch, peers, peers]`.

    `A = softmax_b(query_a . key_b)`, without a scale; query and key are linear maps to `dim // divisor` numbers (at
    least one) without bias, shared by all peers. Row a holds the weights of a's target, its own among them.
    """

    divisor: int = 8
    normal_init: bool = False  # N(0, 0.01^2) as in the published VGG, instead of torch's linear layer

    @nn.compact
    def __call__(self, features, train: bool = False):
        init = nn.initializers.normal(0.01) if self.normal_init else torch_kernel
        width = max(features.shape[-1] // self.divisor, 1)
        query, key = (
            nn.Dense(width, use_bias=False, kernel_init=init, name=name)(features) for name in ("query", "key")
        )
        return nn.softmax(jnp.einsum("bad,bcd->bac", query, key), axis=-1)


class Gate(nn.Module):
    """Weights `[batch, peers]` of the peers' logits (ONE) from the map `[batch, height, width, channels]` they share.

    `softmax(relu(batch_norm(linear(mean over the map))))`.
    """

    peers: int
    initial: str = "torch"  # "torch"; "zero_bias"; or "normal": N(0, 0.01^2) and a zero bias

    @nn.compact
    def __call__(self, shared, train: bool = False):
        pooled = global_pool(shared)
        kernel = nn.initializers.normal(0.01) if self.initial == "normal" else torch_kernel
        bias = torch_bias(pooled.shape[-1]) if self.initial == "torch" else nn.initializers.zeros
        x = nn.Dense(self.peers, kernel_init=kernel, bias_init=bias, name="linear")(pooled)
        return nn.softmax(nn.relu(BatchNorm(name="norm")(x, train)), axis=-1)
