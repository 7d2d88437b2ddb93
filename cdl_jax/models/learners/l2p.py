"""L2P (Wang et al., CVPR 2022) as in CODA-Prompt's, CDL's or its own code.

Each prompted layer has a pool of prompts with keys. An image gets the `top_k` prompts whose keys have the largest
cosine with its query. By default prompts are prefixes, as in CODA-Prompt's and CDL's code. Half of the vectors of a
prompt become keys, the other half values of the layer's attention. Layer 0 is prompted, or with `deep` layers 0 to 4.

`OFFICIAL` sets what differs in the authors' program (github.com/google-research/l2p). Prompts are tokens before those
of the image from block 0 on. The head reads the mean of their outputs. All images of a batch get the same prompts.
Prompts, keys and head start at or near zero. There the images of one device, 16, select the prompts of a batch; here
those of the global batch do, so that the result does not depend on the number of devices.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax.errors import UserError
from cdl_jax.losses import Context
from cdl_jax.models.learners.base import (
    Pool,
    Selection,
    batchwise_top_k,
    check_length,
    l2_normalize,
)
from cdl_jax.models.modules import heads
from cdl_jax.models.vit import Prompt
from cdl_jax.options import Option

OPTIONS = {
    "pool": Option(30, "prompts in the pool of each layer", minimum=1),
    "length": Option(20, "vectors of a prompt: the first half keys, the rest values", minimum=1),
    "top_k": Option(5, "prompts that an image selects", minimum=1),
    "deep": Option(False, "prompts in blocks 0 to 4 instead of block 0"),
    # "similarity" is "mean" without its constant. "legacy_sum" is that of the programs before January 2025.
    "key_loss": Option(
        "mean",
        "loss of the selected keys; mean: 1 - cosine of query and keys, mean over the batch; similarity: minus the "
        "cosine; legacy_sum: the double sum over the batch",
        choices=("mean", "similarity", "legacy_sum"),
    ),
    # Tokens have no position. All `length` vectors of the selected prompts are tokens.
    "prompt_form": Option(
        "prefix",
        "prefix: prompts are keys and values of the attention; tokens: they are tokens before the others from block "
        "0 on, and the head reads their mean output",
        choices=("prefix", "tokens"),
    ),
    "full_length_kv": Option(
        False, 'of form "prefix": a prompt has `length` keys and `length` values instead of half each'
    ),
    "batchwise": Option(
        False,
        "all images of a batch get the top_k prompts that most of them select, in training and at test time; "
        "accuracies then depend on eval.batch_size",
    ),
    "shared_keys": Option(False, "of `deep`: all layers share one set of keys, hence one selection and one key loss"),
    "init_scale": Option(1.0, "prompts and keys start from U[0, init_scale)", above=0),
    "head_init": Option(
        "torch",
        "initial head; torch: U(+-1/sqrt(dim)), as torch initializes a linear layer",
        choices=("torch", "zeros"),
    ),
}

# The authors' configs/cifar100_l2p.py and models/prompt.py.
OFFICIAL = {
    "pool": 10,
    "length": 10,
    "top_k": 4,
    "deep": False,
    "key_loss": "similarity",
    "prompt_form": "tokens",
    "batchwise": True,
    "shared_keys": True,
    "init_scale": 0.01,
    "head_init": "zeros",
}


class L2P(Pool):
    """L2P's prompt pool.

    Parameters of each layer l: `prompts_l` `[pool_size, prompt_length, dim]` and `keys_l` `[pool_size, key_dim]`, both
    from U[0, init_scale). With shared keys only the first layer has `keys_l`.

    Attributes:
      pool_size: prompts in the pool of each layer.
      prompt_length: vectors of a prompt: keys and values half each, or all of them tokens.
      top_k: prompts that an image gets.
      layers: the prompted layers.
      key_loss: "mean", "similarity" or "legacy_sum", see `OPTIONS["key_loss"]`.
      prompt_tokens: whether prompts are tokens instead of prefixes.
      batchwise_prompt: whether all images of a batch get the same prompts.
      shared_keys: whether all layers share the keys of the first.
      init_scale: upper bound of the initial values of prompts and keys.
      dim: width of the backbone.
      key_dim: width of queries and keys.
      head_init: "torch" or "zeros".
    """

    pool_size: int
    prompt_length: int
    top_k: int
    layers: tuple[int, ...]
    key_loss: str
    prompt_tokens: bool
    batchwise_prompt: bool
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
    def __call__(self, query: jax.Array, context: Context, train: bool) -> Selection:
        """Selects the prompts of each image, see `Pool`."""
        prompts, selected, tokens, loss = {}, {}, None, jnp.zeros(())
        init, query_norm = nn.initializers.uniform(self.init_scale), l2_normalize(query)
        for layer in self.layers:
            prompt_pool = self.param(f"prompts_{layer}", init, (self.pool_size, self.prompt_length, self.dim))
            if layer == self.layers[0] or not self.shared_keys:
                prompt_key = self.param(f"keys_{layer}", init, (self.pool_size, self.key_dim))
                similarity = query_norm @ l2_normalize(prompt_key).T  # [batch, pool_size]
                _, indices = jax.lax.top_k(jax.lax.stop_gradient(similarity), self.top_k)
                if self.batchwise_prompt:
                    indices = batchwise_top_k(indices, self.pool_size, self.top_k, context.weight)
                if train:
                    loss += self._key_loss(similarity, indices)
            batched_prompts = prompt_pool[indices]  # [batch, top_k, prompt_length, dim], the nearest first
            selected[f"layer_{layer}"] = jax.nn.one_hot(indices, self.pool_size, dtype=jnp.int32).sum(axis=1)
            if self.prompt_tokens:
                tokens = batched_prompts.reshape(len(query), -1, self.dim)
                continue
            half = self.prompt_length // 2
            prefix = (batched_prompts[:, :, :half], batched_prompts[:, :, half:])
            prompts[layer] = Prompt(prefix=tuple(part.reshape(len(query), -1, self.dim) for part in prefix))
        return Selection(prompts, loss, selected, tokens)

    def _key_loss(self, similarity, indices):
        """Computes the loss that pulls the selected keys towards the query.

        "mean" is `mean_b sum_j (1 - cos(q_b, k_bj))`. "similarity" is `mean_b sum_j -cos(q_b, k_bj)`. "legacy_sum" is
        `sum_b sum_i sum_j (1 - cos(q_b, k_ij))`, with the keys that *every* image i selects.

        Args:
          similarity: float32 `[batch, pool_size]`, cosines of queries and keys.
          indices: int32 `[batch, top_k]`, the selected rows.
        """
        if self.key_loss == "legacy_sum":
            return (1 - similarity[:, indices]).sum()
        constant = 1 if self.key_loss == "mean" else 0
        return (constant - jnp.take_along_axis(similarity, indices, axis=1)).sum(axis=1).mean()


def build(options: ConfigDict, *, dim: int, key_dim: int, depth: int, num_tasks: int) -> L2P:
    """Returns the pool of an option section, see `models.learners.base`.

    Raises:
      UserError: options do not fit together.
    """
    del num_tasks
    layers = tuple(range(5)) if options.deep else (0,)
    prompt_tokens = options.prompt_form == "tokens"
    if not (prompt_tokens or options.full_length_kv):
        check_length(options.length, "learner.length")
    if prompt_tokens and (options.deep or options.full_length_kv):
        key = "deep" if options.deep else "full_length_kv"
        raise UserError(f"learner.{key} has no meaning with learner.prompt_form='tokens': set learner.{key}=False")
    if options.top_k > options.pool:
        raise UserError(
            f"learner.top_k={options.top_k} of a pool of {options.pool} prompts: choose 1 <= top_k <= learner.pool"
        )
    if len(layers) > depth:
        raise UserError(f"learner.deep prompts blocks 0 to 4, the backbone has {depth}: set learner.deep=False")
    return L2P(
        pool_size=options.pool,
        prompt_length=2 * options.length if options.full_length_kv else options.length,
        top_k=options.top_k,
        layers=layers,
        key_loss=options.key_loss,
        prompt_tokens=prompt_tokens,
        batchwise_prompt=options.batchwise,
        shared_keys=options.shared_keys,
        init_scale=options.init_scale,
        dim=dim,
        key_dim=key_dim,
        head_init=options.head_init,
    )
