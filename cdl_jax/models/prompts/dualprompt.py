"""DualPrompt (Wang et al., ECCV 2022) in the prefix form of CODA-Prompt's and CDL's programs.

The first blocks get a general prompt that all pictures share; the next ones an expert prompt of the task. In training a
task's pictures take the task's own row; at test time a picture takes the row whose key is nearest to its query, out of
the whole pool, rows of tasks to come included.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdl_jax.errors import UserError
from cdl_jax.models.prompts import Pool, Selection, check_layers, check_length, halves, unit
from cdl_jax.models.vit import Prompt

OPTIONS = {
    "pool": 0,  # expert prompts of each layer; 0: one for each task
    "length": 20,  # vectors of an expert prompt: the first half keys, the rest values
    "general_length": 6,
    "general_layers": 2,  # blocks 0 and 1
    "expert_layers": 3,  # the blocks after those: 2, 3 and 4
    "pull": "mean",  # of the key loss over the batch; or "legacy_sum", as in the programs before January 2025
}


class DualPrompt(Pool):
    """General and expert prompts.

    Parameters, all from U[0, 1): `general_l` `[general_length, dim]`; `prompts_l` `[pool, length, dim]` and `keys_l`
    `[pool, key_dim]`, for each layer l that has them.
    """

    pool: int
    length: int
    general_length: int
    general_layers: int
    expert_layers: int
    pull: str
    dim: int
    key_dim: int

    @nn.compact
    def __call__(self, query, context, train: bool) -> Selection:
        """query `[batch, key_dim]`, a constant of the frozen query network."""
        prompts, selected, loss = {}, {}, jnp.zeros(())
        draw, batch, query = nn.initializers.uniform(1.0), len(query), unit(query)
        for layer in range(self.general_layers):
            values = self.param(f"general_{layer}", draw, (self.general_length, self.dim))
            prompts[layer] = Prompt(prefix=halves(jnp.broadcast_to(values, (batch, *values.shape))))
        for layer in range(self.general_layers, self.general_layers + self.expert_layers):
            values = self.param(f"prompts_{layer}", draw, (self.pool, self.length, self.dim))
            similarity = query @ unit(self.param(f"keys_{layer}", draw, (self.pool, self.key_dim))).T
            rows = similarity.argmax(axis=1)
            if train:
                rows = jnp.full_like(rows, context.task)
                distance = 1 - jnp.take(similarity, context.task, axis=1)
                loss += distance.mean() if self.pull == "mean" else distance.sum()
            prompts[layer] = Prompt(prefix=halves(values[rows]))
            selected[f"layer_{layer}"] = jax.nn.one_hot(rows, self.pool, dtype=jnp.int32)
        return Selection(prompts, loss, selected)


def build(options, *, dim: int, key_dim: int, depth: int, num_tasks: int) -> DualPrompt:
    """The prompts for a backbone of width `dim` and `depth` blocks, asked with queries of width `key_dim`.

    Raises:
      UserError: sizes that do not fit together.
    """
    pool = options.pool or num_tasks
    check_length(options.length, "learner.length")
    check_length(options.general_length, "learner.general_length")
    check_layers(
        options.general_layers + options.expert_layers, depth, "learner.general_layers + learner.expert_layers"
    )
    if pool < num_tasks:
        raise UserError(f"learner.pool={pool} has fewer prompts than the stream has tasks, {num_tasks}: say 0")
    if options.pull not in ("mean", "legacy_sum"):
        raise UserError(f"learner.pull={options.pull!r}: use 'mean' or 'legacy_sum'")
    return DualPrompt(
        pool, options.length, options.general_length, options.general_layers, options.expert_layers, options.pull,
        dim, key_dim,
    )  # fmt: skip
