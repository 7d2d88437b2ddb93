"""L2P (Wang et al., CVPR 2022) in the prefix form of CODA-Prompt's and CDL's programs.

Each prompted layer owns a pool of prompts with keys; a picture takes the `top_k` prompts whose keys are nearest to its
query, and half of each prompt becomes keys, the other half values of the layer's attention. "Shallow" prompts layer 0,
"deep" layers 0 to 4.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdl_jax.errors import UserError
from cdl_jax.models.prompts import Pool, Selection, check_length, unit
from cdl_jax.models.vit import Prompt

OPTIONS = {
    "pool": 30,  # prompts in the pool of each layer
    "length": 20,  # vectors of a prompt: the first half keys, the rest values
    "top_k": 5,
    "deep": False,
    "pull": "mean",  # or "legacy_sum", the double sum over the batch of the programs before January 2025
}


class L2P(Pool):
    """Prompt pool.

    Parameters, for each layer l: `prompts_l` `[pool, length, dim]` and `keys_l` `[pool, key_dim]`, both from U[0, 1).
    """

    pool: int
    length: int
    top_k: int
    layers: tuple[int, ...]
    pull: str
    dim: int
    key_dim: int

    @nn.compact
    def __call__(self, query, context, train: bool) -> Selection:
        """query `[batch, key_dim]`, a constant of the frozen query network."""
        del context  # the pool is shared by all tasks
        prompts, selected, loss = {}, {}, jnp.zeros(())
        query = unit(query)
        for layer in self.layers:
            values = self.param(f"prompts_{layer}", nn.initializers.uniform(1.0), (self.pool, self.length, self.dim))
            keys = self.param(f"keys_{layer}", nn.initializers.uniform(1.0), (self.pool, self.key_dim))
            similarity = query @ unit(keys).T
            _, rows = jax.lax.top_k(jax.lax.stop_gradient(similarity), self.top_k)
            chosen = values[rows]  # [batch, top_k, length, dim], the nearest first
            half = self.length // 2
            prefix = (chosen[:, :, :half], chosen[:, :, half:])
            prompts[layer] = Prompt(prefix=tuple(p.reshape(len(query), -1, self.dim) for p in prefix))
            selected[f"layer_{layer}"] = jax.nn.one_hot(rows, self.pool, dtype=jnp.int32).sum(axis=1)
            if train:
                loss += self._pull_loss(similarity, rows)
        return Selection(prompts, loss, selected)

    def _pull_loss(self, similarity, rows):
        """Draws the chosen keys towards the query: `mean_b sum_j (1 - cos(q_b, k_bj))`.

        "legacy_sum" is `sum_b sum_i sum_j (1 - cos(q_b, k_ij))`, with the keys that *every* picture i chose.
        """
        if self.pull == "mean":
            return (1 - jnp.take_along_axis(similarity, rows, axis=1)).sum(axis=1).mean()
        return (1 - similarity[:, rows]).sum()


def build(options, *, dim: int, key_dim: int, depth: int, num_tasks: int) -> L2P:
    """The pool for a backbone of width `dim` and `depth` blocks, asked with queries of width `key_dim`.

    Raises:
      UserError: sizes that do not fit together.
    """
    del num_tasks
    layers = tuple(range(5)) if options.deep else (0,)
    check_length(options.length, "learner.length")
    if not 1 <= options.top_k <= options.pool:
        raise UserError(
            f"learner.top_k={options.top_k} of a pool of {options.pool} prompts: choose 1 <= top_k <= learner.pool"
        )
    if options.pull not in ("mean", "legacy_sum"):
        raise UserError(f"learner.pull={options.pull!r}: use 'mean' or 'legacy_sum'")
    if len(layers) > depth:
        raise UserError(f"learner.deep prompts blocks 0 to 4, the backbone has {depth}: say learner.deep=False")
    return L2P(options.pool, options.length, options.top_k, layers, options.pull, dim, key_dim)
