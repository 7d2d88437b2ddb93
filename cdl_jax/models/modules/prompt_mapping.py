"""Mapping of a teacher's prompts to prompts of a student's width: CDL-Prompt, CDL version 1 (arXiv 2407.13911v1)."""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdl_jax.models.modules import heads
from cdl_jax.models.prompts import coda
from cdl_jax.models.prompts.base import split_kv
from cdl_jax.models.vit import Prompt


def mean_vector(prompt: Prompt):
    """Mean over a prefix's keys and values, `[batch, dim]`, a constant."""
    return jax.lax.stop_gradient(jnp.concatenate(prompt.prefix, axis=1).mean(axis=1))


class PoolMapping(nn.Module):
    """A CODA pool for each layer, asked with the mean of the teacher's prompt vectors there.

    Parameters, for each layer l < layers: `prompts_l` `[pool, length, dim]`, `keys_l` and `attention_l`
    `[pool, teacher_dim]`, whose first `per_task` rows start orthogonal and whose others start at zero.
    """

    layers: int
    pool: int
    per_task: int
    length: int
    dim: int
    teacher_dim: int

    @nn.compact
    def __call__(self, prompts: Mapping[int, Prompt], task, train: bool) -> dict[int, Prompt]:
        """Student prefixes of `length` vectors for the layers that have a prefix in `prompts`.

        task: int32, the rows up to this task's are used; in training those before it are constants.
        """
        mapped = {}
        for layer in range(self.layers):
            pools = coda.component_pools(self, layer, self.pool, self.per_task, self.length, self.dim, self.teacher_dim)
            if layer in prompts:
                first, end = task * self.per_task, (task + 1) * self.per_task
                pools = [coda.active_rows(rows, first, end, train) for rows in pools]
                mapped[layer] = Prompt(prefix=split_kv(coda.weighted_sum(mean_vector(prompts[layer]), *pools)))
        return mapped


class SelfAttentionMapping(nn.Module):
    """Single-head self-attention among a layer's keys, and among its values, with a value projection to `dim`.

    The number of vectors is unchanged. The published sources have this variant commented out; no result of it is known.
    """

    layers: int
    dim: int
    teacher_dim: int

    @nn.compact
    def __call__(self, prompts: Mapping[int, Prompt], task, train: bool) -> dict[int, Prompt]:
        """As `PoolMapping`; `task` and `train` change nothing."""
        del task, train

        def dense(features, name):
            bias = heads.torch_bias(self.teacher_dim)
            return nn.Dense(features, kernel_init=heads.torch_kernel, bias_init=bias, name=name)

        mapped = {}
        for layer in range(self.layers):
            query = dense(self.teacher_dim, f"query_{layer}")
            key = dense(self.teacher_dim, f"key_{layer}")
            value = dense(self.dim, f"value_{layer}")

            def attend(x, query=query, key=key, value=value):
                x = jax.lax.stop_gradient(x)
                scores = jnp.einsum("bqd,bkd->bqk", query(x), key(x)) * self.teacher_dim**-0.5
                return nn.softmax(scores) @ value(x)

            # Layers without a prompt are called too, so that the parameters do not depend on the learner.
            empty = Prompt(prefix=(jnp.zeros((1, 1, self.teacher_dim)),) * 2)
            result = Prompt(prefix=tuple(attend(half) for half in prompts.get(layer, empty).prefix))
            if layer in prompts:
                mapped[layer] = result
        return mapped
