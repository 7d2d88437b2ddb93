"""CODA-Prompt (Smith et al., CVPR 2023) in the prefix form of its own and of CDL's program.

A picture's prompt is a weighted sum of components; each task brings its share of them. A component's weight is the
cosine between its key and the query times its attention vector. Components of earlier tasks are constants in training,
and those of later tasks are unused. New ones start orthogonal to all before them.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdl_jax.errors import UserError
from cdl_jax.models.prompts.base import Pool, Selection, check_layers, check_length, l2_normalize, split_kv
from cdl_jax.models.vit import Prompt

OPTIONS = {
    "pool": 100,  # components of each layer, over all tasks
    "length": 8,  # vectors of a component: the first half keys, the rest values
    "ortho": 0.0,  # weight of the loss that keeps components orthogonal
    "layers": 5,  # blocks 0 to 4
}


class CODA(Pool):
    """Components of all tasks.

    Parameters, for each layer l: `prompts_l` `[pool, length, dim]`, `keys_l` and `attention_l` `[pool, key_dim]`; rows
    of tasks to come are zero.
    """

    pool: int
    length: int
    ortho: float
    layers: int
    per_task: int
    dim: int
    key_dim: int

    @nn.compact
    def __call__(self, query, context, train: bool) -> Selection:
        """query `[batch, key_dim]`, a constant of the frozen query network."""
        prompts, selected, loss = {}, {}, jnp.zeros(())
        first, end = context.task * self.per_task, (context.task + 1) * self.per_task
        for layer in range(self.layers):
            pools = component_pools(self, layer, self.pool, self.per_task, self.length, self.dim, self.key_dim)
            pools = [active_rows(rows, first, end, train) for rows in pools]
            prompts[layer] = Prompt(prefix=split_kv(weighted_sum(query, *pools)))
            selected[f"layer_{layer}"] = jnp.abs(component_weights(query, *pools[1:]))
            if train and self.ortho:
                loss += self.ortho * sum(_far_from_orthogonal(rows, end) for rows in pools)
        return Selection(prompts, loss, selected)

    @nn.nowrap
    def start_task(self, variables, context, key):
        """New rows of the task; those of the first task are drawn with the parameters."""
        return {**variables, "params": start_task(variables["params"], self.per_task, context.task, key)}


def component_pools(module, layer: int, pool: int, per_task: int, length: int, dim: int, key_dim: int):
    """Parameters `prompts_<layer>`, `keys_<layer>` and `attention_<layer>` of `module`, ready for the first task."""

    def first_rows(key, shape):
        width = math.prod(shape[1:])
        return orthogonal_rows(jnp.zeros(shape), jax.random.normal(key, (per_task, width)), 0)

    shapes = {"prompts": (pool, length, dim), "keys": (pool, key_dim), "attention": (pool, key_dim)}
    return [module.param(f"{name}_{layer}", first_rows, shape) for name, shape in shapes.items()]


def start_task(params, per_task: int, task, key):
    """The pools `params` with new rows for `task` (int32); unchanged at the first, for which they were drawn ready."""
    keys = jax.random.split(key, len(params))
    normal = {
        name: jax.random.normal(k, (per_task, params[name][0].size))
        for k, name in zip(keys, sorted(params), strict=True)
    }
    renewed = reinit_rows(params, normal, task * per_task)
    return jax.tree.map(lambda new, old: jnp.where(task > 0, new, old), renewed, params)


def reinit_rows(params, normal, first):
    """Each of the pools `params` with rows from `first` on made of `normal`, name -> `[count, width]`."""
    return {name: orthogonal_rows(rows, normal[name], first) for name, rows in params.items()}


def active_rows(rows, first, end, train: bool):
    """`rows` `[pool, ...]` with zeros from row `end` on, and constant ahead of row `first` in training."""
    index = jnp.arange(len(rows)).reshape(-1, *[1] * (rows.ndim - 1))
    rows = jnp.where(index < end, rows, 0)
    return jnp.where(index < first, jax.lax.stop_gradient(rows), rows) if train else rows


def weighted_sum(query, prompts, keys, attention):
    """`sum_k cos(q_b * A_k, K_k) P_k`, `[batch, length, dim]`, of components P with keys K and attention vectors A."""
    return jnp.einsum("bk,kld->bld", component_weights(query, keys, attention), prompts)


def component_weights(query, keys, attention):
    """`cos(q_b * A_k, K_k)`, `[batch, pool]`; 0 for rows of zeros."""
    return jnp.einsum("bkd,kd->bk", l2_normalize(query[:, None] * attention), l2_normalize(keys))


def orthogonal_rows(rows, normal, first):
    """`rows` `[pool, ...]` with Gram-Schmidt's rows from `first` on: unit vectors orthogonal to the rows before them.

    u_k = v_k - sum_{j<k} (v_k . u_j / u_j . u_j) u_j, over all earlier rows as they are; then |u_k| = 1. Rows that
    training has made dependent on one another leave the new ones not quite orthogonal to them.

    Args:
      rows: rows ahead of `first` are kept.
      normal: the v_k, `[count, width]` from N(0, 1).
      first: int, may be traced. Rows from `first + count` on become zero.
    """
    flat = rows.reshape(len(rows), -1)
    index = jnp.arange(len(flat))[:, None]

    def add(k, flat):
        earlier = jnp.where(index < first + k, flat, 0)
        squares = (earlier**2).sum(axis=1)
        along = jnp.dot(earlier, normal[k], precision="highest") / jnp.where(squares > 0, squares, 1)
        return flat.at[first + k].set(normal[k] - jnp.dot(along, earlier, precision="highest"))

    flat = jax.lax.fori_loop(0, len(normal), add, flat)
    new = jnp.where(index < first + len(normal), l2_normalize(flat), 0)
    return jnp.where(index < first, flat, new).reshape(rows.shape)


def rows_per_task(pool: int, num_tasks: int, width: int, option: str) -> int:
    """A task's share of a pool.

    Args:
      width: the least number of entries of a row that is made orthogonal to the others.

    Raises:
      UserError: a pool that is too small for the tasks, or too large for orthogonal rows.
    """
    if pool < num_tasks:
        raise UserError(f"{option}={pool} is too small for {num_tasks} tasks: choose at least one row a task")
    if pool > width:
        raise UserError(f"{option}={pool} is above {width}, the width of its rows: no more can be orthogonal")
    return pool // num_tasks


def _far_from_orthogonal(rows, end):
    """Mean of `(Z Z^T - 1)^2` over the entries of the first `end` rows Z; the rows after them are zero."""
    flat = rows.reshape(len(rows), -1)
    diagonal = jnp.diag((jnp.arange(len(flat)) < end).astype(flat.dtype))
    return ((flat @ flat.T - diagonal) ** 2).sum() / end**2


def build(options, *, dim: int, key_dim: int, depth: int, num_tasks: int) -> CODA:
    """The components for a backbone of width `dim` and `depth` blocks, asked with queries of width `key_dim`.

    Raises:
      UserError: sizes that do not fit together.
    """
    check_length(options.length, "learner.length")
    check_layers(options.layers, depth, "learner.layers")
    per_task = rows_per_task(options.pool, num_tasks, min(key_dim, options.length * dim), "learner.pool")
    if options.pool % num_tasks:
        raise UserError(f"learner.pool={options.pool} is no multiple of the {num_tasks} tasks that share it")
    return CODA(options.pool, options.length, options.ortho, options.layers, per_task, dim, key_dim)
