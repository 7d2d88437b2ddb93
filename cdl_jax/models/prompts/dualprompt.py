"""DualPrompt (Wang et al., ECCV 2022) as CODA-Prompt's and CDL's programs have it, or as its authors have it.

The first blocks get a general prompt that all pictures share; the next ones an expert prompt of the task. In training a
task's pictures take the task's own row; at test time a picture takes the row whose key is nearest to its query, out of
the whole pool, rows of tasks to come included.

The authors' program (github.com/google-research/l2p) differs in what `OFFICIAL` sets: one set of keys for all layers, a
task that begins with the prompts of the task before, the same choice for a whole test batch, longer prefixes, and
prompts, keys and head that start at or near zero.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdl_jax.errors import UserError
from cdl_jax.models.modules import heads
from cdl_jax.models.prompts.base import (
    Pool,
    Selection,
    batchwise_top_k,
    check_choice,
    check_layers,
    check_length,
    l2_normalize,
    split_kv,
)
from cdl_jax.models.vit import Prompt

OPTIONS = {
    "pool": 0,  # expert prompts of each layer; 0: one for each task
    "length": 20,  # vectors of an expert prompt: the first half keys, the rest values
    "general_length": 6,
    "general_layers": 2,  # blocks 0 and 1
    "expert_layers": 3,  # the blocks after those: 2, 3 and 4
    # "mean": 1 - cosine of query and the task's key, over the batch. "similarity": the same less its constant, minus
    # the cosine. "legacy_sum": the sum over the batch of the programs before January 2025.
    "pull": "mean",
    "full_length": False,  # a prompt has as many keys as its length says and as many values, in place of half each
    "batchwise": False,  # a test batch takes the row that most of its pictures chose: results depend on eval.batch_size
    "shared_keys": False,  # one set of keys, hence one choice and one pull, for all layers of expert prompts
    "inherit": False,  # a task's expert prompts begin as those of the task before, not as they were drawn
    "init_scale": 1.0,  # prompts and keys start from U[0, init_scale)
    "head_init": "torch",  # U(+-1/sqrt(dim)), as torch draws a linear layer; or "zeros"
}

# The authors' configs/cifar100_dualprompt.py and models/prompt.py. For ImageNet-R: length 20, batchwise False.
OFFICIAL = {
    "length": 5,
    "general_length": 5,
    "general_layers": 2,
    "expert_layers": 3,
    "pull": "similarity",
    "full_length": True,
    "batchwise": True,
    "shared_keys": True,
    "inherit": True,
    "init_scale": 0.01,
    "head_init": "zeros",
}


class DualPrompt(Pool):
    """General and expert prompts.

    Parameters, all from U[0, init_scale): `general_l` `[general_vectors, dim]`; `prompts_l` `[pool, vectors, dim]` and
    `keys_l` `[pool, key_dim]`, for each layer l that has them; with shared keys only those of the first such layer.

    vectors, general_vectors: of a prompt, keys and values half each.
    """

    pool: int
    vectors: int
    general_vectors: int
    general_layers: int
    expert_layers: int
    pull: str
    batchwise: bool
    shared_keys: bool
    inherit: bool
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
        prompts, selected, loss = {}, {}, jnp.zeros(())
        draw, batch, query = nn.initializers.uniform(self.init_scale), len(query), l2_normalize(query)
        for layer in range(self.general_layers):
            values = self.param(f"general_{layer}", draw, (self.general_vectors, self.dim))
            prompts[layer] = Prompt(prefix=split_kv(jnp.broadcast_to(values, (batch, *values.shape))))
        for layer in range(self.general_layers, self.general_layers + self.expert_layers):
            values = self.param(f"prompts_{layer}", draw, (self.pool, self.vectors, self.dim))
            if layer == self.general_layers or not self.shared_keys:
                similarity = query @ l2_normalize(self.param(f"keys_{layer}", draw, (self.pool, self.key_dim))).T
                rows = similarity.argmax(axis=1)
                if train:
                    rows = jnp.full_like(rows, context.task)
                    loss += self._pull_loss(jnp.take(similarity, context.task, axis=1))
                elif self.batchwise:
                    rows = batchwise_top_k(rows[:, None], self.pool, 1, context.weight)[:, 0]
            prompts[layer] = Prompt(prefix=split_kv(values[rows]))
            selected[f"layer_{layer}"] = jax.nn.one_hot(rows, self.pool, dtype=jnp.int32)
        return Selection(prompts, loss, selected)

    def _pull_loss(self, similarity):
        """Draws the task's key towards the queries, for their cosines `[batch]`."""
        if self.pull == "similarity":
            return -similarity.mean()
        return (1 - similarity).mean() if self.pull == "mean" else (1 - similarity).sum()

    @nn.nowrap
    def start_task(self, variables, context, key):
        """With `inherit`, a copy of the last task's expert prompts in the row of the new task."""
        del key
        if not self.inherit:
            return variables
        task, last = context.task, jnp.maximum(context.task - 1, 0)
        params = {
            name: rows.at[task].set(rows[last]) if name.startswith("prompts_") else rows
            for name, rows in variables["params"].items()
        }
        return {**variables, "params": params}


def build(options, *, dim: int, key_dim: int, depth: int, num_tasks: int) -> DualPrompt:
    """The prompts for a backbone of width `dim` and `depth` blocks, asked with queries of width `key_dim`.

    Raises:
      UserError: sizes that do not fit together.
    """
    pool = options.pool or num_tasks
    check_choice(options, "pull", ("mean", "similarity", "legacy_sum"))
    check_choice(options, "head_init", ("torch", "zeros"))
    for key in ("length", "general_length"):
        if not options.full_length:
            check_length(options[key], f"learner.{key}")
        elif options[key] < 1:
            raise UserError(f"learner.{key}={options[key]} must be at least 1")
    check_layers(
        options.general_layers + options.expert_layers, depth, "learner.general_layers + learner.expert_layers"
    )
    if pool < num_tasks:
        raise UserError(f"learner.pool={pool} has fewer prompts than the stream has tasks, {num_tasks}: say 0")
    if not options.init_scale > 0:
        raise UserError(f"learner.init_scale={options.init_scale} must be above 0")
    each = 2 if options.full_length else 1
    return DualPrompt(
        pool, each * options.length, each * options.general_length, options.general_layers, options.expert_layers,
        options.pull, options.batchwise, options.shared_keys, options.inherit, options.init_scale, dim, key_dim,
        options.head_init,
    )  # fmt: skip
