"""DualPrompt (Wang et al., ECCV 2022) as in CODA-Prompt's, CDL's or its own code.

The first blocks have a general prompt, the same for all images. The next blocks have an expert prompt of the task. In
training the images of a task get the row of the task. At test time an image gets the row whose key has the largest
cosine with its query, from the full pool, rows of future tasks included.

`OFFICIAL` sets what differs in the authors' program (github.com/google-research/l2p). All layers share one set of keys.
A task starts with the prompts of the task before. All images of a test batch get the same prompt. Prefixes are longer.
Prompts, keys and head start at or near zero.
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
    Variables,
    batchwise_top_k,
    check_layers,
    check_length,
    l2_normalize,
    split_kv,
)
from cdl_jax.models.modules import heads
from cdl_jax.models.vit import Prompt
from cdl_jax.options import Option

OPTIONS = {
    "pool": Option(0, "expert prompts of each layer; 0: one for each task"),
    "length": Option(20, "vectors of an expert prompt: the first half keys, the rest values", minimum=1),
    "general_length": Option(6, "vectors of a general prompt", minimum=1),
    "general_layers": Option(2, "blocks with a general prompt: 2 are blocks 0 and 1"),
    "expert_layers": Option(3, "blocks with expert prompts, after those: 3 are blocks 2, 3 and 4"),
    # "similarity" is "mean" without its constant. "legacy_sum" is that of the programs before January 2025.
    "key_loss": Option(
        "mean",
        "loss of the task's key; mean: 1 - cosine of query and key, mean over the batch; similarity: minus the "
        "cosine; legacy_sum: the sum over the batch",
        choices=("mean", "similarity", "legacy_sum"),
    ),
    "full_length_kv": Option(False, "a prompt has `length` keys and `length` values instead of half each"),
    "batchwise": Option(
        False, "all images of a test batch get the row that most select: results depend on eval.batch_size"
    ),
    "shared_keys": Option(
        False, "all layers of expert prompts share one set of keys, hence one selection and one key loss"
    ),
    "init_from_previous_task": Option(False, "a task's expert prompts start as copies of those of the task before"),
    "init_scale": Option(1.0, "prompts and keys start from U[0, init_scale)", above=0),
    "head_init": Option(
        "torch",
        "initial head; torch: U(+-1/sqrt(dim)), as torch initializes a linear layer",
        choices=("torch", "zeros"),
    ),
}

# The authors' configs/cifar100_dualprompt.py and models/prompt.py. For ImageNet-R: length 20, batchwise False.
OFFICIAL = {
    "length": 5,
    "general_length": 5,
    "general_layers": 2,
    "expert_layers": 3,
    "key_loss": "similarity",
    "full_length_kv": True,
    "batchwise": True,
    "shared_keys": True,
    "init_from_previous_task": True,
    "init_scale": 0.01,
    "head_init": "zeros",
}


class DualPrompt(Pool):
    """General and expert prompts.

    All parameters start from U[0, init_scale). A general layer l has `general_l` `[general_length, dim]`. An expert
    layer l has `prompts_l` `[pool_size, expert_length, dim]` and `keys_l` `[pool_size, key_dim]`. With shared keys only
    the first expert layer has `keys_l`.

    Attributes:
      pool_size: expert prompts of each layer.
      expert_length: vectors of an expert prompt, keys and values half each.
      general_length: vectors of a general prompt, keys and values half each.
      general_layers: number of blocks with a general prompt, from block 0 on.
      expert_layers: number of blocks after those, with expert prompts.
      key_loss: "mean", "similarity" or "legacy_sum", see `OPTIONS["key_loss"]`.
      batchwise_prompt: whether all images of a test batch get the same expert prompt.
      shared_keys: whether all expert layers share the keys of the first.
      init_from_previous_task: whether a task starts with the expert prompts of the task before.
      init_scale: upper bound of the initial values of prompts and keys.
      dim: width of the backbone.
      key_dim: width of queries and keys.
      head_init: "torch" or "zeros".
    """

    pool_size: int
    expert_length: int
    general_length: int
    general_layers: int
    expert_layers: int
    key_loss: str
    batchwise_prompt: bool
    shared_keys: bool
    init_from_previous_task: bool
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
        prompts, selected, loss = {}, {}, jnp.zeros(())
        init, batch, query_norm = nn.initializers.uniform(self.init_scale), len(query), l2_normalize(query)
        for layer in range(self.general_layers):
            general_prompt = self.param(f"general_{layer}", init, (self.general_length, self.dim))
            batched_prompts = jnp.broadcast_to(general_prompt, (batch, *general_prompt.shape))
            prompts[layer] = Prompt(prefix=split_kv(batched_prompts))
        for layer in range(self.general_layers, self.general_layers + self.expert_layers):
            prompt_pool = self.param(f"prompts_{layer}", init, (self.pool_size, self.expert_length, self.dim))
            if layer == self.general_layers or not self.shared_keys:
                prompt_key = self.param(f"keys_{layer}", init, (self.pool_size, self.key_dim))
                similarity = query_norm @ l2_normalize(prompt_key).T  # [batch, pool_size]
                indices = similarity.argmax(axis=1)
                if train:
                    indices = jnp.full_like(indices, context.task)
                    loss += self._key_loss(jnp.take(similarity, context.task, axis=1))
                elif self.batchwise_prompt:
                    indices = batchwise_top_k(indices[:, None], self.pool_size, 1, context.weight)[:, 0]
            prompts[layer] = Prompt(prefix=split_kv(prompt_pool[indices]))
            selected[f"layer_{layer}"] = jax.nn.one_hot(indices, self.pool_size, dtype=jnp.int32)
        return Selection(prompts, loss, selected)

    def _key_loss(self, similarity):
        """Computes the loss that pulls the task's key towards the queries.

        `similarity` `[batch]` has the cosines of the key and the queries.
        """
        if self.key_loss == "similarity":
            return -similarity.mean()
        return (1 - similarity).mean() if self.key_loss == "mean" else (1 - similarity).sum()

    @nn.nowrap
    def start_task(self, variables: Variables, context: Context, key: jax.Array) -> Variables:
        """Copies the expert prompts of the last task to the row of the new task.

        Without `init_from_previous_task` the variables are unchanged.
        """
        del key
        if not self.init_from_previous_task:
            return variables
        task, last = context.task, jnp.maximum(context.task - 1, 0)
        params = {
            name: rows.at[task].set(rows[last]) if name.startswith("prompts_") else rows
            for name, rows in variables["params"].items()
        }
        return {**variables, "params": params}


def build(options: ConfigDict, *, dim: int, key_dim: int, depth: int, num_tasks: int) -> DualPrompt:
    """Returns the prompts of an option section, see `models.learners.base`.

    Raises:
      UserError: options do not fit together.
    """
    pool_size = options.pool or num_tasks
    for key in ("length", "general_length"):
        if not options.full_length_kv:
            check_length(options[key], f"learner.{key}")
    check_layers(
        options.general_layers + options.expert_layers, depth, "learner.general_layers + learner.expert_layers"
    )
    if pool_size < num_tasks:
        raise UserError(
            f"learner.pool={pool_size} has fewer prompts than the stream has tasks, {num_tasks}: set it to 0"
        )
    vectors_per_length = 2 if options.full_length_kv else 1
    return DualPrompt(
        pool_size=pool_size,
        expert_length=vectors_per_length * options.length,
        general_length=vectors_per_length * options.general_length,
        general_layers=options.general_layers,
        expert_layers=options.expert_layers,
        key_loss=options.key_loss,
        batchwise_prompt=options.batchwise,
        shared_keys=options.shared_keys,
        init_from_previous_task=options.init_from_previous_task,
        init_scale=options.init_scale,
        dim=dim,
        key_dim=key_dim,
        head_init=options.head_init,
    )
