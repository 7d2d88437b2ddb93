"""Bottleneck adapters beside the branches of a Transformer's blocks."""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jax.tree_util import Partial

from cdl_jax.models.modules import heads
from cdl_jax.models.vit import Adapter


def init_bottlenecks(key: jax.Array, blocks: int, dim: int, rank: int) -> dict[str, jax.Array]:
    """Returns the initial adapters of `blocks` blocks, whose outputs are zero.

    Args:
      key: of the random numbers.
      blocks: number of adapted blocks.
      dim: width of a token.
      rank: width of the bottleneck.

    Returns:
      `down` `[blocks, dim, rank]` from U(-1/sqrt(dim), 1/sqrt(dim)), as LoRA's first matrix; zeros `down_bias`
      `[blocks, rank]`, `up` `[blocks, rank, dim]`, `up_bias` `[blocks, dim]`.
    """
    keys = jax.random.split(key, blocks)
    return {
        "down": jax.vmap(lambda k: heads.torch_kernel(k, (dim, rank)))(keys),
        "down_bias": jnp.zeros((blocks, rank)),
        "up": jnp.zeros((blocks, rank, dim)),
        "up_bias": jnp.zeros((blocks, dim)),
    }


def parallel_adapters(
    params: Mapping[str, jax.Array], scale: float, dropout: float, key: jax.Array | None
) -> dict[int, Adapter]:
    """Returns AdaptFormers beside the MLP of each block, by block.

    Args:
      params: as `init_bottlenecks` returns them.
      scale: factor of the adapters' outputs.
      dropout: rate of dropout in the bottleneck.
      key: of the dropout; None: no dropout.
    """
    blocks = len(params["down"])
    keys = None if key is None or not dropout else jax.random.split(key, blocks)
    rows = [jax.tree.map(lambda leaf, i=i: leaf[i], (params, keys)) for i in range(blocks)]
    # The masks of dropout depend on the number of tokens.
    changes = [Partial(_parallel_relu, (*row, scale, dropout)) for row in rows]
    return {i: Adapter(mlp=change, is_tokenwise=keys is None) for i, change in enumerate(changes)}


def _parallel_relu(arrays, x, y):
    """Returns `y + s (relu(x W_down + b_down) W_up + b_up)`.

    AdaptFormer (Chen et al., 2022), equation 3.
    """
    params, key, scale, dropout = arrays
    params = {name: value.astype(x.dtype) for name, value in params.items()}
    hidden = jax.nn.relu(x @ params["down"] + params["down_bias"])
    if key is not None:
        hidden = jnp.where(jax.random.bernoulli(key, 1 - dropout, hidden.shape), hidden / (1 - dropout), 0)
    return y + scale * (hidden.astype(x.dtype) @ params["up"] + params["up_bias"])
