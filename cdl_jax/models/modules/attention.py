"""Computes multi-head attention by XLA's operations or a kernel of cuDNN."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from cdl_jax.errors import UserError
from cdl_jax.runtime import target


def choose(option: str, dtype: str, width: int) -> str:
    """Returns the implementation of an option `attention`, "xla" or "cudnn".

    Args:
      option: "auto", "xla" or "cudnn".
      dtype: of the computation.
      width: of a head.

    Raises:
      UserError: "cudnn", but the device, the dtype or the width has no such kernel.
    """
    device = target.current()
    exists = device.has_fused_attention(dtype, width)
    if option == "cudnn" and not exists:
        raise UserError(
            "ViT attention='cudnn' needs an NVIDIA GPU from Ampere on, dtype='bfloat16', and heads whose width is a "
            f"multiple of 8 up to 128 (here: {device.name}, {dtype} and {width}): use 'auto'"
        )
    return option if option != "auto" else "cudnn" if exists else "xla"


def split_heads(x: jax.Array, heads: int) -> jax.Array:
    """Reshapes `[batch, length, dim]` to `[batch, length, heads, dim / heads]`."""
    return x.reshape(*x.shape[:2], heads, x.shape[-1] // heads)


def weights(query: jax.Array, key: jax.Array) -> jax.Array:
    """Computes the weights of keys for each query: the softmax of scaled scores.

    Args:
      query: `[batch, queries, heads, width]`.
      key: `[batch, keys, heads, width]`.

    Returns:
      float32 `[batch, heads, queries, keys]`.
    """
    return nn.softmax(_scores(query, key) * query.shape[-1] ** -0.5, axis=-1)


def mix(
    query: jax.Array, key: jax.Array, value: jax.Array, weights: jax.Array, implementation: str = "xla"
) -> jax.Array:
    """Computes the mixture of values for each query.

    Args:
      query: `[batch, queries, heads, width]`.
      key: `[batch, keys, heads, width]`.
      value: as `key`.
      weights: of `weights(query, key)`.
      implementation: "xla" reads the weights; "cudnn" reads queries and keys, and stores no weights.

    Returns:
      `[batch, queries, heads * width]`. With "cudnn" a row without meaning follows an odd number of queries; dropped
      after the next layer, it costs no copy.
    """
    if implementation == "cudnn":
        mixed = fused_attention(query, key, value)
    else:  # not by the same function, which takes 2.5 times as long on a CPU
        mixed = jnp.einsum("bhqk,bkhd->bqhd", weights.astype(value.dtype), value)
    return mixed.reshape(*mixed.shape[:2], -1)


def fused_attention(query: jax.Array, key: jax.Array, value: jax.Array, implementation: str = "cudnn") -> jax.Array:
    """Computes the mixture of values as one kernel that stores no scores.

    cuDNN differentiates even lengths only, as jax 0.12 calls it. So queries, keys and values get a row of zeros where
    their number is odd, and the kernel gets the number of keys.

    Args:
      query: `[batch, queries, heads, width]`.
      key: `[batch, keys, heads, width]`.
      value: as `key`.
      implementation: of `jax.nn.dot_product_attention`; "xla" computes the same on any device.

    Returns:
      `[batch, queries rounded up to an even number, heads, width]`.
    """
    batch, keys = key.shape[:2]
    lengths = jnp.full((batch,), keys, jnp.int32) if keys % 2 else None
    operands = _share_batch_axes((*map(_pad_to_even, (query, key, value)), lengths))
    query, key, value, lengths = operands
    return jax.nn.dot_product_attention(query, key, value, key_value_seq_lengths=lengths, implementation=implementation)


def _pad_to_even(x):
    """Adds a row of zeros to `[batch, length, heads, width]` if the length is odd."""
    return jnp.pad(x, ((0, 0), (0, x.shape[1] % 2), (0, 0), (0, 0)))


@jax.custom_vjp
def _share_batch_axes(arrays):
    """Returns the arrays unchanged, batched alike under `jax.vmap`.

    If one of them is batched, all of them are.

    Under `vmap` jax gives cuDNN only arrays that all have the axis. Of several seeds, the first block has the same
    queries in all.
    """
    return _share_axis(arrays)


_share_batch_axes.defvjp(lambda arrays: (_share_axis(arrays), None), lambda _, gradients: (gradients,))


@jax.custom_batching.custom_vmap
def _share_axis(arrays):
    return arrays


@_share_axis.def_vmap
def _share_axis_rule(size, is_batched, arrays):
    def share(x, has_axis):
        return x if has_axis else jnp.broadcast_to(x, (size, *x.shape))

    batched = jax.tree.map(share, arrays, *is_batched)
    return _share_axis(batched), jax.tree.map(lambda _: True, arrays)


def _scores(query, key):
    """Returns the scores, float32.

    Gradients are rounded to the dtype of the operands.
    """
    product = _narrow_scores if query.dtype != jnp.float32 else _wide_scores
    return product(query, key)


def _wide_scores(query, key):
    return jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)


# jax would widen queries and keys for the gradients: products of float32 operands have half the rate.
@jax.custom_vjp
def _narrow_scores(query, key):
    return _wide_scores(query, key)


def _scores_forward(query, key):
    return _wide_scores(query, key), (query, key)


def _scores_backward(operands, gradient):
    query, key = operands
    gradient = gradient.astype(query.dtype)
    return jnp.einsum("bhqk,bkhd->bqhd", gradient, key), jnp.einsum("bhqk,bqhd->bkhd", gradient, query)


_narrow_scores.defvjp(_scores_forward, _scores_backward)
