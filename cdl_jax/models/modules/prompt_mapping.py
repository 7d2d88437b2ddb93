"""Maps the prompts of a teacher to the width of a student.

CDL-Prompt, CDL version 1 (arXiv 2407.13911v1).
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdl_jax.models.learners import coda
from cdl_jax.models.learners.base import split_kv
from cdl_jax.models.modules import heads
from cdl_jax.models.vit import Prompt


def mean_vector(prompt: Prompt) -> jax.Array:
    """Averages the keys and values of a prefix to `[batch, dim]`, without gradient."""
    return jax.lax.stop_gradient(jnp.concatenate(prompt.prefix, axis=1).mean(axis=1))


class PoolMapping(nn.Module):
    """A CODA pool for each layer.

    The query is the mean of the teacher's prompt vectors of the layer. Parameters of each layer l < layers: `prompts_l`
    `[pool_size, length, dim]`, `keys_l` and `attention_l` `[pool_size, teacher_dim]`. Their first `rows_per_task` rows
    start orthogonal, the others at zero.

    Attributes:
      layers: number of layers, from block 0 on.
      pool_size: rows of each pool, over all tasks.
      rows_per_task: rows that each task adds.
      length: vectors of a mapped prompt, keys and values half each.
      dim: width of the student.
      teacher_dim: width of the teacher.
    """

    layers: int
    pool_size: int
    rows_per_task: int
    length: int
    dim: int
    teacher_dim: int

    @nn.compact
    def __call__(self, prompts: Mapping[int, Prompt], task: jax.Array | int, train: bool) -> dict[int, Prompt]:
        """Maps the teacher's prompts.

        Args:
          prompts: layer -> prefix of the teacher.
          task: int32, index of the task. Rows of later tasks are not used.
          train: whether this is a training step, in which rows of earlier tasks are constants.

        Returns:
          Layer -> prefix of the student of `length` vectors, for the layers of `prompts`.
        """
        mapped = {}
        for layer in range(self.layers):
            pools = coda.component_pools(
                self, layer, self.pool_size, self.rows_per_task, self.length, self.dim, self.teacher_dim
            )
            if layer in prompts:
                start, end = task * self.rows_per_task, (task + 1) * self.rows_per_task
                pools = [coda.active_rows(rows, start, end, train) for rows in pools]
                mapped[layer] = Prompt(prefix=split_kv(coda.weighted_sum(mean_vector(prompts[layer]), *pools)))
        return mapped


class SelfAttentionMapping(nn.Module):
    """Single-head self-attention among the keys of a layer, and among its values.

    The value projection maps to `dim`. The number of vectors is unchanged.

    In the published sources this variant is commented out. No result is published.

    Attributes:
      layers: number of layers, from block 0 on.
      dim: width of the student.
      teacher_dim: width of the teacher.
    """

    layers: int
    dim: int
    teacher_dim: int

    @nn.compact
    def __call__(self, prompts: Mapping[int, Prompt], task: jax.Array | int, train: bool) -> dict[int, Prompt]:
        """Maps the teacher's prompts, see `PoolMapping`.

        `task` and `train` have no effect.
        """
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

            # Layers without a prompt are called as well, so that the parameters do not depend on the learner.
            empty = Prompt(prefix=(jnp.zeros((1, 1, self.teacher_dim)),) * 2)
            result = Prompt(prefix=tuple(attend(half) for half in prompts.get(layer, empty).prefix))
            if layer in prompts:
                mapped[layer] = result
        return mapped
