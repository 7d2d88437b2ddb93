"""OS-Prompt (Kim et al., ECCV 2024): prompts selected by the pass's class token.

As in CODA-Prompt the prompt of a block is a weighted sum of components, and each task adds its share of them. The
weight of a component is the cosine of its key and the query. The query is the class token at the input of the block, so
a prediction needs one pass of the backbone instead of two. In training, components of earlier tasks are constants.

OS-Prompt++ adds the query-pool regularization (`regularization=1e-4`). It needs the class token of the backbone without
prompts as reference, so a training step has two passes; a prediction still has one.

Published for ViT-B/16 with 100 components of 8 vectors in blocks 0 to 4, 10 tasks, accuracy and forgetting: Split
CIFAR-100 86.42 and 1.64, with the regularization 86.68 and 1.18; ImageNet-R 74.58 and 1.92, with it 75.67 and 1.27.

"One-stage prompt-based continual learning", sections on the one-stage framework and the query-pool regularization.
"""

from collections.abc import Mapping
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.tree_util import Partial
from ml_collections import ConfigDict

from cdl_jax.errors import UserError
from cdl_jax.losses import Context
from cdl_jax.models.learners import coda
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
    **{key: coda.OPTIONS[key] for key in ("pool", "length", "layers")},
    "regularization": Option(0.0, "weight of the query-pool regularization; OS-Prompt++ has 1e-4"),
}


class OSPrompt(Pool):
    """Prompt components of all tasks, selected within the pass.

    Parameters of each layer l: `prompts_l` `[pool_size, length, dim]`, `keys_l` `[pool_size, dim]`. Rows of future
    tasks are zero.

    Attributes:
      pool_size: components of each layer, over all tasks.
      length: vectors of a component, keys and values half each.
      layers: number of prompted blocks, from block 0 on.
      regularization: weight of the query-pool regularization.
      rows_per_task: components that each task adds.
      dim: width of the backbone.
    """

    pool_size: int
    length: int
    layers: int
    regularization: float
    rows_per_task: int
    dim: int

    @property
    def uses_query(self) -> bool:
        """Returns whether a query of the frozen backbone is computed.

        The query is the reference of the regularization.
        """
        return self.regularization > 0

    @nn.compact
    def __call__(self, query: jax.Array, context: Context, train: bool) -> Selection:
        """Returns functions from the class tokens to the prompts.

        `selected` has the weights of the reference.
        """
        prompts, reference = {}, {}
        shapes = {"prompts": (self.pool_size, self.length, self.dim), "keys": (self.pool_size, self.dim)}
        for layer in range(self.layers):
            pools = coda.declare_pools(self, layer, self.rows_per_task, shapes)
            rows, keys = (self._active(pool, context, train) for pool in pools)
            prompts[layer] = Partial(_weighted_prompt, (rows, keys))
            if train and self.regularization:
                reference[f"layer_{layer}"] = component_weights(query, keys)
        return Selection(prompts, jnp.zeros(()), reference)

    @nn.nowrap
    def complete_selection(
        self, selection: Selection, variables: Variables, outputs: Mapping[str, Any], context: Context, train: bool
    ) -> Selection:
        """Returns the selection with the weights and the loss of the pass.

        The loss is the regularization of all layers.
        """
        selected, loss = {}, jnp.zeros(())
        is_active = jnp.arange(self.pool_size) < (context.task + 1) * self.rows_per_task
        for layer in range(self.layers):
            keys = self._active(variables["params"][f"keys_{layer}"], context, train)
            weights, name = component_weights(outputs[f"class_token_{layer}"], keys), f"layer_{layer}"
            if name in selection.selected:
                loss += query_pool_loss(weights, selection.selected[name], is_active)
            selected[name] = jnp.abs(weights)
        return selection.replace(selected=selected, loss=self.regularization * loss)

    @nn.nowrap
    def start_task(self, variables: Variables, context: Context, key: jax.Array) -> Variables:
        """Initializes the rows of the task.

        The rows of the first task are initialized with the parameters.
        """
        return {**variables, "params": coda.start_task(variables["params"], self.rows_per_task, context.task, key)}

    @nn.nowrap
    def _active(self, pool, context, train):
        """Returns the rows that the task uses."""
        start, end = context.task * self.rows_per_task, (context.task + 1) * self.rows_per_task
        return coda.active_rows(pool, start, end, train)


def component_weights(query: jax.Array, keys: jax.Array) -> jax.Array:
    """Returns the cosines of queries `[batch, dim]` and keys `[pool_size, dim]`.

    Cosines with rows of zeros are 0.
    """
    return l2_normalize(query.astype(jnp.float32)) @ l2_normalize(keys).T


def query_pool_loss(weights: jax.Array, reference: jax.Array, is_active: jax.Array) -> jax.Array:
    """Returns the mean over the batch of `|softmax(weights) - softmax(reference)|^2`.

    Args:
      weights: float32 `[batch, pool_size]`, cosines of the queries and the keys.
      reference: of the same shape, cosines of the reference and the keys.
      is_active: bool `[pool_size]`, the components of the tasks so far.
    """
    query, reference = (jax.nn.softmax(jnp.where(is_active, each, -jnp.inf)) for each in (weights, reference))
    return ((query - reference) ** 2).sum(axis=1).mean()


def _weighted_prompt(arrays, class_token):
    """Returns the prompt of a block for its class tokens."""
    rows, keys = arrays
    prompts = jnp.einsum("bk,kld->bld", component_weights(class_token, keys), rows)
    return Prompt(prefix=split_kv(prompts))


check_growth = coda.check_growth


def build(options: ConfigDict, *, dim: int, key_dim: int, depth: int, num_tasks: int) -> OSPrompt:
    """Returns the components of an option section, see `models.learners.base`.

    Raises:
      UserError: options do not fit together.
    """
    check_length(options.length, "learner.length")
    check_layers(options.layers, depth, "learner.layers")
    task_rows = coda.rows_per_task(options.pool, num_tasks, dim, "learner.pool")
    if options.pool % num_tasks:
        raise UserError(f"learner.pool={options.pool} is not a multiple of the {num_tasks} tasks that share it")
    if options.regularization and key_dim != dim:
        raise UserError(
            f"learner.regularization={options.regularization} compares class tokens of width {dim} with queries of "
            f"width {key_dim}: set cdl.teacher_query='teacher'"
        )
    return OSPrompt(
        pool_size=options.pool,
        length=options.length,
        layers=options.layers,
        regularization=options.regularization,
        rows_per_task=task_rows,
        dim=dim,
    )
