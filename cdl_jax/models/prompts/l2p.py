"""L2P (Wang et al., CVPR 2022) in the prefix form of CODA-Prompt's and CDL's programs, or as its authors have it.

Each prompted layer owns a pool of prompts with keys; a picture takes the `top_k` prompts whose keys are nearest to its
query, and half of each prompt becomes keys, the other half values of the layer's attention. "Shallow" prompts layer 0,
"deep" layers 0 to 4.

The authors' program (github.com/google-research/l2p) differs in what `OFFICIAL` sets: prompts are tokens ahead of the
picture's from block 0 on, the head reads the mean of their outputs, a whole batch takes the same prompts, and prompts,
keys and head start at or near zero. There a vote is among the pictures of one device, 16; here among the whole batch,
so that the number of devices does not matter.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdl_jax.errors import UserError
from cdl_jax.models.modules import heads
from cdl_jax.models.prompts.base import Pool, Selection, batchwise_top_k, check_choice, check_length, l2_normalize
from cdl_jax.models.vit import Prompt

OPTIONS = {
    "pool": 30,  # prompts in the pool of each layer
    "length": 20,  # vectors of a prompt: the first half keys, the rest values
    "top_k": 5,
    "deep": False,
    # "mean": 1 - cosine of query and chosen keys, over the batch. "similarity": the same less its constant, minus the
    # cosine. "legacy_sum": the double sum over the batch of the programs before January 2025.
    "pull": "mean",
    # "prefix": prompts are keys and values of the attention. "tokens": all `length` vectors of the chosen prompts are
    # tokens ahead of the others from block 0 on, without position, and the head reads the mean of their outputs.
    "form": "prefix",
    "full_length": False,  # of form "prefix": `length` keys and as many values, in place of half each
    # The batch takes the top_k prompts that most of its pictures chose, in training and at test time, where accuracies
    # then depend on eval.batch_size.
    "batchwise": False,
    "shared_keys": False,  # of "deep": one set of keys, hence one choice and one pull, for all layers
    "init_scale": 1.0,  # prompts and keys start from U[0, init_scale)
    "head_init": "torch",  # U(+-1/sqrt(dim)), as torch draws a linear layer; or "zeros"
}

# The authors' configs/cifar100_l2p.py and models/prompt.py.
OFFICIAL = {
    "pool": 10,
    "length": 10,
    "top_k": 4,
    "deep": False,
    "pull": "similarity",
    "form": "tokens",
    "batchwise": True,
    "shared_keys": True,
    "init_scale": 0.01,
    "head_init": "zeros",
}


class L2P(Pool):
    """Prompt pool.

    Parameters, for each layer l, all from U[0, init_scale): `prompts_l` `[pool, vectors, dim]` and `keys_l`
    `[pool, key_dim]`; with shared keys only those of the first layer.

    vectors: of a prompt; keys and values half each, or all of them tokens.
    """

    pool: int
    vectors: int
    top_k: int
    layers: tuple[int, ...]
    pull: str
    tokens: bool
    batchwise: bool
    shared_keys: bool
    init_scale: float
    dim: int
    key_dim: int
    head_init: str

    @nn.nowrap
    def head(self, num_classes: int) -> heads.LinearHead:
        """Returns a linear head with the initial values of `head_init`."""
        return heads.LinearHead(num_classes, self.head_init)

    @nn.compact
    def __call__(self, query, context, train: bool) -> Selection:
        """query `[batch, key_dim]`, a constant of the frozen query network."""
        prompts, selected, tokens, loss = {}, {}, None, jnp.zeros(())
        draw, query = nn.initializers.uniform(self.init_scale), l2_normalize(query)
        for layer in self.layers:
            values = self.param(f"prompts_{layer}", draw, (self.pool, self.vectors, self.dim))
            if layer == self.layers[0] or not self.shared_keys:
                keys = self.param(f"keys_{layer}", draw, (self.pool, self.key_dim))
                similarity = query @ l2_normalize(keys).T
                _, rows = jax.lax.top_k(jax.lax.stop_gradient(similarity), self.top_k)
                if self.batchwise:
                    rows = batchwise_top_k(rows, self.pool, self.top_k, context.weight)
                if train:
                    loss += self._pull_loss(similarity, rows)
            chosen = values[rows]  # [batch, top_k, vectors, dim], the nearest first
            selected[f"layer_{layer}"] = jax.nn.one_hot(rows, self.pool, dtype=jnp.int32).sum(axis=1)
            if self.tokens:
                tokens = chosen.reshape(len(query), -1, self.dim)
                continue
            half = self.vectors // 2
            prefix = (chosen[:, :, :half], chosen[:, :, half:])
            prompts[layer] = Prompt(prefix=tuple(p.reshape(len(query), -1, self.dim) for p in prefix))
        return Selection(prompts, loss, selected, tokens)

    def _pull_loss(self, similarity, rows):
        """Draws the chosen keys towards the query: `mean_b sum_j (1 - cos(q_b, k_bj))`.

        "similarity" is `mean_b sum_j -cos(q_b, k_bj)`; "legacy_sum" `sum_b sum_i sum_j (1 - cos(q_b, k_ij))`, with the
        keys that *every* picture i chose.
        """
        if self.pull == "legacy_sum":
            return (1 - similarity[:, rows]).sum()
        constant = 1 if self.pull == "mean" else 0
        return (constant - jnp.take_along_axis(similarity, rows, axis=1)).sum(axis=1).mean()


def build(options, *, dim: int, key_dim: int, depth: int, num_tasks: int) -> L2P:
    """The pool for a backbone of width `dim` and `depth` blocks, asked with queries of width `key_dim`.

    Raises:
      UserError: sizes that do not fit together.
    """
    del num_tasks
    layers = tuple(range(5)) if options.deep else (0,)
    check_choice(options, "pull", ("mean", "similarity", "legacy_sum"))
    check_choice(options, "form", ("prefix", "tokens"))
    check_choice(options, "head_init", ("torch", "zeros"))
    tokens = options.form == "tokens"
    if not (tokens or options.full_length):
        check_length(options.length, "learner.length")
    if options.length < 1:
        raise UserError(f"learner.length={options.length} must be at least 1")
    if tokens and (options.deep or options.full_length):
        key = "deep" if options.deep else "full_length"
        raise UserError(f"learner.{key} has no meaning with learner.form='tokens': say learner.{key}=False")
    if not 1 <= options.top_k <= options.pool:
        raise UserError(
            f"learner.top_k={options.top_k} of a pool of {options.pool} prompts: choose 1 <= top_k <= learner.pool"
        )
    if not options.init_scale > 0:
        raise UserError(f"learner.init_scale={options.init_scale} must be above 0")
    if len(layers) > depth:
        raise UserError(f"learner.deep prompts blocks 0 to 4, the backbone has {depth}: say learner.deep=False")
    vectors = 2 * options.length if options.full_length else options.length
    return L2P(
        options.pool, vectors, options.top_k, layers, options.pull, tokens, options.batchwise, options.shared_keys,
        options.init_scale, dim, key_dim, options.head_init,
    )  # fmt: skip
