"""CODA-Prompt (Smith et al., CVPR 2023) in the prefix form of its and CDL's code.

The prompt of an image is a weighted sum of components. Each task adds its share of them. The weight of a component is
the cosine between its key and the product of the query with its attention vector. In training, components of earlier
tasks are constants, and components of future tasks are unused. New components start orthogonal to all earlier ones.
"""

import math
from collections.abc import Mapping
from typing import Any

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
    check_layers,
    check_length,
    l2_normalize,
    split_kv,
)
from cdl_jax.models.vit import Prompt
from cdl_jax.options import Option

OPTIONS = {
    "pool": Option(100, "components of each layer, over all tasks", minimum=1),
    "length": Option(8, "vectors of a component: the first half keys, the rest values", minimum=2),
    "ortho": Option(0.0, "weight of the loss that keeps components orthogonal"),
    "layers": Option(5, "prompted blocks: 5 are blocks 0 to 4", minimum=1),
}


class CODA(Pool):
    """Prompt components of all tasks.

    Parameters of each layer l: `prompts_l` `[pool_size, length, dim]`, `keys_l` and `attention_l`
    `[pool_size, key_dim]`. Rows of future tasks are zero.

    Attributes:
      pool_size: components of each layer, over all tasks.
      length: vectors of a component, keys and values half each.
      ortho: weight of the loss that keeps components orthogonal.
      layers: number of prompted blocks, from block 0 on.
      rows_per_task: components that each task adds.
      dim: width of the backbone.
      key_dim: width of queries and keys.
    """

    pool_size: int
    length: int
    ortho: float
    layers: int
    rows_per_task: int
    dim: int
    key_dim: int

    @nn.compact
    def __call__(self, query: jax.Array, context: Context, train: bool) -> Selection:
        """Computes the prompts of each image, see `Pool`."""
        prompts, selected, loss = {}, {}, jnp.zeros(())
        start, end = context.task * self.rows_per_task, (context.task + 1) * self.rows_per_task
        for layer in range(self.layers):
            pools = component_pools(
                self, layer, self.pool_size, self.rows_per_task, self.length, self.dim, self.key_dim
            )
            pools = [active_rows(rows, start, end, train) for rows in pools]
            prompts[layer] = Prompt(prefix=split_kv(weighted_sum(query, *pools)))
            selected[f"layer_{layer}"] = jnp.abs(component_weights(query, *pools[1:]))
            if train and self.ortho:
                loss += self.ortho * sum(_orthogonality_loss(rows, end) for rows in pools)
        return Selection(prompts, loss, selected)

    @nn.nowrap
    def start_task(self, variables: Variables, context: Context, key: jax.Array) -> Variables:
        """Initializes the rows of the task.

        The rows of the first task are initialized with the parameters.
        """
        return {**variables, "params": start_task(variables["params"], self.rows_per_task, context.task, key)}


def component_pools(
    module: nn.Module, layer: int, pool_size: int, rows_per_task: int, length: int, dim: int, key_dim: int
) -> list[jax.Array]:
    """Declares the parameters of one layer in `module`.

    The rows of the first task are initialized.

    Returns:
      `prompts_<layer>` `[pool_size, length, dim]`, `keys_<layer>` and `attention_<layer>` `[pool_size, key_dim]`.
    """
    shapes = {"prompts": (pool_size, length, dim), "keys": (pool_size, key_dim), "attention": (pool_size, key_dim)}
    return declare_pools(module, layer, rows_per_task, shapes)


def declare_pools(
    module: nn.Module, layer: int, rows_per_task: int, shapes: Mapping[str, tuple[int, ...]]
) -> list[jax.Array]:
    """Declares parameters `<name>_<layer>` of one layer in `module`.

    The rows of the first task are initialized.

    Args:
      module: the learner.
      layer: index of the block.
      rows_per_task: rows that each task adds.
      shapes: name -> `[pool_size, ...]`.
    """

    def init_rows(key, shape):
        width = math.prod(shape[1:])
        return orthogonal_rows(jnp.zeros(shape), jax.random.normal(key, (rows_per_task, width)), 0)

    return [module.param(f"{name}_{layer}", init_rows, shape) for name, shape in shapes.items()]


def start_task(params: Variables, rows_per_task: int, task: jax.Array, key: jax.Array) -> Variables:
    """Returns the pools with the rows of `task` initialized.

    Args:
      params: name -> pool `[pool_size, ...]`.
      rows_per_task: components that each task adds.
      task: int32, index of the task. Task 0 changes nothing: its rows are initialized with the parameters.
      key: of the random numbers.
    """
    keys = jax.random.split(key, len(params))
    normal = {
        name: jax.random.normal(k, (rows_per_task, params[name][0].size))
        for k, name in zip(keys, sorted(params), strict=True)
    }
    new_params = reinit_rows(params, normal, task * rows_per_task)
    return jax.tree.map(lambda new, old: jnp.where(task > 0, new, old), new_params, params)


def reinit_rows(params: Variables, normal: Variables, start: jax.Array) -> dict[str, jax.Array]:
    """Initializes the rows of each pool from `start` on (see `orthogonal_rows`).

    Args:
      params: name -> pool `[pool_size, ...]`.
      normal: name -> random numbers `[count, width]`.
      start: int32, index of the first new row.
    """
    return {name: orthogonal_rows(rows, normal[name], start) for name, rows in params.items()}


def active_rows(rows: jax.Array, start: jax.Array, end: jax.Array, train: bool) -> jax.Array:
    """Returns the rows of a pool that the current task uses.

    Args:
      rows: `[pool_size, ...]`.
      start: int32, first row of the current task. In training earlier rows are constants.
      end: int32, first row of the next task. Rows from there on become zero.
      train: whether this is a training step.

    >>> active_rows(jnp.array([1.0, 2.0, 3.0]), 1, 2, False).tolist()
    [1.0, 2.0, 0.0]
    >>> jax.grad(lambda rows: active_rows(rows, 1, 2, True).sum())(jnp.ones(3)).tolist()
    [0.0, 1.0, 0.0]
    """
    index = jnp.arange(len(rows)).reshape(-1, *[1] * (rows.ndim - 1))
    rows = jnp.where(index < end, rows, 0)
    return jnp.where(index < start, jax.lax.stop_gradient(rows), rows) if train else rows


def weighted_sum(query: jax.Array, prompts: jax.Array, keys: jax.Array, attention: jax.Array) -> jax.Array:
    """Computes the weighted sum of components, `sum_k cos(q_b * A_k, K_k) P_k`.

    Args:
      query: q, `[batch, key_dim]`.
      prompts: components P, `[pool_size, length, dim]`.
      keys: K, `[pool_size, key_dim]`.
      attention: attention vectors A, `[pool_size, key_dim]`.

    Returns:
      `[batch, length, dim]`.
    """
    return jnp.einsum("bk,kld->bld", component_weights(query, keys, attention), prompts)


def component_weights(query: jax.Array, keys: jax.Array, attention: jax.Array) -> jax.Array:
    """Computes `cos(q_b * A_k, K_k)`, `[batch, pool_size]`, see `weighted_sum`.

    The weights of rows of zeros are 0.
    """
    return jnp.einsum("bkd,kd->bk", l2_normalize(query[:, None] * attention), l2_normalize(keys))


def orthogonal_rows(rows: jax.Array, normal: jax.Array, start: jax.Array) -> jax.Array:
    """Replaces the rows from `start` on by unit vectors orthogonal to earlier rows.

    Gram-Schmidt: `u_k = v_k - sum_{j<k} (v_k . u_j / u_j . u_j) u_j` over all earlier rows as they are; then
    `|u_k| = 1`. If training has made earlier rows dependent on one another, the new rows are not quite orthogonal to
    them.

    Args:
      rows: `[pool_size, ...]`. Rows before `start` are unchanged.
      normal: the v_k, `[count, width]` from N(0, 1).
      start: int32, may be traced. Rows from `start + count` on become zero.

    >>> print(orthogonal_rows(jnp.array([[2.0, 0.0], [0.0, 0.0]]), jnp.array([[3.0, -4.0]]), 1))
    [[ 2.  0.]
     [ 0. -1.]]
    """
    flat = rows.reshape(len(rows), -1)
    index = jnp.arange(len(flat))[:, None]

    def add_row(k, flat):
        earlier = jnp.where(index < start + k, flat, 0)
        squares = (earlier**2).sum(axis=1)
        coefficients = jnp.dot(earlier, normal[k], precision="highest") / jnp.where(squares > 0, squares, 1)
        return flat.at[start + k].set(normal[k] - jnp.dot(coefficients, earlier, precision="highest"))

    flat = jax.lax.fori_loop(0, len(normal), add_row, flat)
    new = jnp.where(index < start + len(normal), l2_normalize(flat), 0)
    return jnp.where(index < start, flat, new).reshape(rows.shape)


def rows_per_task(pool_size: int, num_tasks: int, width: int, option: str) -> int:
    """Returns a task's share of the rows of a pool.

    Args:
      pool_size: rows of the pool.
      num_tasks: tasks of the stream.
      width: the smallest number of entries of a row that is made orthogonal to the others.
      option: config key of `pool_size`, for messages.

    Raises:
      UserError: the pool is too small for the tasks, or too large for orthogonal rows.
    """
    if pool_size < num_tasks:
        raise UserError(f"{option}={pool_size} is too small for {num_tasks} tasks: choose at least one row a task")
    if pool_size > width:
        raise UserError(
            f"{option}={pool_size} is above {width}, the dim of its rows: at most {width} rows can be orthogonal"
        )
    return pool_size // num_tasks


def check_growth(
    options: Mapping[str, Any], num_tasks: int, new_options: Mapping[str, Any], new_num_tasks: int
) -> None:
    """Checks that a longer stream leaves each task its rows of the pool.

    Args:
      options: section `learner` of the run that has fewer tasks.
      num_tasks: tasks of that run.
      new_options: section `learner` of the longer stream.
      new_num_tasks: tasks of the longer stream.

    Raises:
      UserError: a task would have another number of rows.
    """
    rows = options["pool"] // num_tasks
    if new_options["pool"] != rows * new_num_tasks:
        raise UserError(
            f"learner.pool={new_options['pool']}: each of the {num_tasks} tasks of the parent has {rows} rows of the "
            f"pool, so {new_num_tasks} tasks need learner.pool={rows * new_num_tasks}"
        )


def _orthogonality_loss(rows, end):
    """Computes the mean of `(Z Z^T - 1)^2` over its entries.

    Z are the first `end` rows; later rows are zero.
    """
    flat = rows.reshape(len(rows), -1)
    diagonal = jnp.diag((jnp.arange(len(flat)) < end).astype(flat.dtype))
    return ((flat @ flat.T - diagonal) ** 2).sum() / end**2


def build(options: ConfigDict, *, dim: int, key_dim: int, depth: int, num_tasks: int) -> CODA:
    """Returns the components of an option section, see `models.learners.base`.

    Raises:
      UserError: options do not fit together.
    """
    check_length(options.length, "learner.length")
    check_layers(options.layers, depth, "learner.layers")
    task_rows = rows_per_task(options.pool, num_tasks, min(key_dim, options.length * dim), "learner.pool")
    if options.pool % num_tasks:
        raise UserError(f"learner.pool={options.pool} is not a multiple of the {num_tasks} tasks that share it")
    return CODA(
        pool_size=options.pool,
        length=options.length,
        ortho=options.ortho,
        layers=options.layers,
        rows_per_task=task_rows,
        dim=dim,
        key_dim=key_dim,
    )
