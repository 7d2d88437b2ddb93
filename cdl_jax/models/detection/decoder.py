"""Decoder of ViDT (Song et al., 2022).

A layer computes self-attention of the detection tokens and deformable attention to the maps.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdl_jax.models.detection.deformable import DeformableAttention
from cdl_jax.models.detection.neck import wide, xavier_dense
from cdl_jax.models.detection.swin import layer_norm
from cdl_jax.models.modules import layers
from cdl_jax.models.modules.heads import torch_bias

_xavier = nn.initializers.xavier_uniform()


class SelfAttention(layers.ReadsParams, nn.Module):
    """Multi-head attention among detection tokens.

    Positions are added to queries and keys only.

    Attributes:
      heads: number of attention heads.
      dropout: rate of the attention weights.
      dtype: of the computation. Softmax is computed in float32.
    """

    heads: int
    dropout: float = 0.0
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, positions: jax.Array, train: bool) -> jax.Array:
        """Returns `[batch, tokens, dim]` of x and `positions` of this shape."""
        dim = x.shape[-1]
        # One matrix, as in torch: Xavier's bound depends on its shape.
        kernel = self.param("in_proj_kernel", _xavier, (dim, 3 * dim)).astype(self.dtype)
        bias = self.param("in_proj_bias", nn.initializers.zeros, (3 * dim,)).astype(self.dtype)
        x, moved = x.astype(self.dtype), (x + positions).astype(self.dtype)
        query, key = jnp.split(moved @ kernel[:, : 2 * dim] + bias[: 2 * dim], 2, axis=-1)
        value = x @ kernel[:, 2 * dim :] + bias[2 * dim :]
        query, key, value = (part.reshape(*x.shape[:2], self.heads, -1) for part in (query, key, value))
        scale = (dim // self.heads) ** -0.5
        logits = jnp.einsum("bqhc,bkhc->bhqk", query * scale, key, preferred_element_type=wide(self.dtype))
        weights = nn.softmax(logits, axis=-1)
        weights = nn.Dropout(self.dropout, deterministic=not train, name="dropout")(weights).astype(self.dtype)
        mixed = jnp.einsum("bhqk,bkhc->bqhc", weights, value).reshape(x.shape)
        return xavier_dense(dim, self.dtype, "out_proj")(mixed)


class DecoderLayer(nn.Module):
    """Post-norm layer: self-attention, deformable attention, MLP.

    Attributes:
      heads: number of attention heads.
      points: number of points for each head and level of the deformable attention.
      hidden: hidden width of the MLP.
      dropout: rate, also of the attention weights.
      implementation: of the deformable attention, see `deformable`.
      dtype: of the computation.
    """

    heads: int
    points: int
    hidden: int
    dropout: float = 0.0
    implementation: str = "auto"
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        positions: jax.Array,
        references: jax.Array,
        maps: Sequence[jax.Array],
        masks: Sequence[jax.Array],
        extents: jax.Array | None = None,
        train: bool = False,
    ) -> jax.Array:
        """Computes the layer.

        Args:
          x: `[batch, queries, dim]`.
          positions: `[batch or 1, queries, dim]`.
          references: `[batch, queries, levels, 2 or 4]`, see `deformable.sampling_locations`.
          maps: see `DeformableAttention`.
          masks: see `DeformableAttention`.
          extents: see `DeformableAttention`.
          train: whether values are dropped, default False.

        Returns:
          `[batch, queries, dim]`.
        """

        def drop(y, name):
            return nn.Dropout(self.dropout, deterministic=not train, name=name)(y)

        dim = x.shape[-1]
        attention = SelfAttention(self.heads, self.dropout, self.dtype, name="self_attn")
        x = layer_norm("norm2", self.dtype)(x + drop(attention(x, positions, train), "dropout2"))
        attention = DeformableAttention(self.heads, self.points, self.implementation, self.dtype, name="cross_attn")
        attended = attention(x + positions, references, maps, masks, extents)
        x = layer_norm("norm1", self.dtype)(x + drop(attended, "dropout1"))
        hidden = drop(nn.relu(_feed_forward(self.hidden, dim, self.dtype, "linear1")(x)), "dropout3")
        y = _feed_forward(dim, self.hidden, self.dtype, "linear2")(hidden)
        return layer_norm("norm3", self.dtype)(x + drop(y, "dropout4"))


def _feed_forward(features, inputs, dtype, name):
    return layers.Dense(features, dtype=dtype, kernel_init=_xavier, bias_init=torch_bias(inputs), name=name)
