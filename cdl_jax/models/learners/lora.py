"""LoRA (Hu et al., ICLR 2022): low-rank updates of the attention's matrices.

The kernel W of a matrix becomes `W + (alpha / rank) A B`. A starts from U(-1/sqrt(dim), 1/sqrt(dim)), B from zeros. The
pretrained kernel is constant. Sequential training of one set is `per_task="one"`. With `per_task="sum"` the sets of
earlier tasks are constants and each task adds its own (as in InfLoRA, Liang and Li, 2024, without its choice of A).
With `per_task="mean"` each task trains its own set on the pretrained backbone, and evaluation uses the mean of the
updates. The defaults are those of the paper's RoBERTa-base: rank 8, alpha 8, queries and values.

"LoRA: low-rank adaptation of large language models", section 4.1, equation 3.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from ml_collections import ConfigDict

from cdl_jax.losses import Context
from cdl_jax.models.learners.base import Learner, Variables
from cdl_jax.models.learners.shared.task_sets import with_trained_set
from cdl_jax.models.modules import heads
from cdl_jax.options import Option

OPTIONS = {
    "rank": Option(8, "columns of A and rows of B", minimum=1),
    "alpha": Option(8.0, "the update is multiplied by alpha / rank", above=0),
    "matrices": Option(
        "qv", "updated matrices: of queries (q), keys (k), values (v)", choices=("q", "v", "qk", "qv", "kv", "qkv")
    ),
    "per_task": Option(
        "one",
        "one: all tasks train the same set; sum: each task adds a set to those of earlier tasks; mean: each task "
        "trains a set alone, and evaluation uses the mean update",
        choices=("one", "sum", "mean"),
    ),
}


class LoRA(Learner):
    """Low-rank updates of the attention of all blocks.

    Parameters: `a` `[depth, matrices, dim, rank]` and `b` `[depth, matrices, rank, dim]`. State, with a set for each
    task: `a` and `b` of all tasks, with a leading axis of `num_tasks`.

    Attributes:
      rank: columns of A.
      alpha: the update is multiplied by alpha / rank.
      matrices: letters of the updated matrices.
      per_task: "one", "sum" or "mean", see `OPTIONS`.
      dim: width of the backbone.
      depth: number of blocks.
      num_tasks: of the stream.
    """

    uses_query: ClassVar[bool] = False

    rank: int
    alpha: float
    matrices: str
    per_task: str
    dim: int
    depth: int
    num_tasks: int

    @nn.nowrap
    def init_variables(self, key: jax.Array, query: jax.Array, backbone: Mapping[str, Any]) -> Variables:
        """Returns the first set, whose update is zero."""
        del query, backbone
        params = self._new_set(key)
        if self.per_task == "one":
            return {"params": params}
        return {
            "params": params,
            "state": jax.tree.map(lambda leaf: jnp.zeros((self.num_tasks, *leaf.shape)), params),
        }

    @nn.nowrap
    def start_task(self, variables: Variables, context: Context, key: jax.Array) -> Variables:
        """Returns a new set for each task but the first.

        The first task has the set of `init_variables`. With `per_task="one"` the variables are unchanged.
        """
        if self.per_task == "one":
            return variables
        new = self._new_set(key)
        params = jax.tree.map(lambda a, b: jnp.where(context.task > 0, a, b), new, variables["params"])
        return {**variables, "params": params}

    @nn.nowrap
    def end_task(self, variables: Variables, context: Context) -> Variables:
        """Stores the set of the task."""
        return variables if self.per_task == "one" else {**variables, "state": with_trained_set(variables, context)}

    @nn.nowrap
    def adapt_backbone(
        self, backbone: Mapping[str, Any], variables: Variables, context: Context, train: bool
    ) -> Mapping[str, Any]:
        """Returns the backbone with updated kernels of queries, keys and values."""
        weights = flatten_dict(backbone)
        for block, update in enumerate(self._updates(variables, context, train)):
            columns = [jnp.zeros((self.dim, self.dim))] * 3
            for letter, matrix in zip(self.matrices, update, strict=True):
                columns["qkv".index(letter)] = matrix
            weights[f"block_{block}", "attn", "qkv", "kernel"] += jnp.concatenate(columns, axis=1)
        return unflatten_dict(weights)

    @nn.nowrap
    def _new_set(self, key):
        """Returns a set whose update is zero."""
        shape = (self.depth, len(self.matrices), self.dim, self.rank)
        kernels = [heads.torch_kernel(k, shape[2:]) for k in jax.random.split(key, shape[0] * shape[1])]
        return {"a": jnp.stack(kernels).reshape(shape), "b": jnp.zeros((*shape[:2], self.rank, self.dim))}

    @nn.nowrap
    def _updates(self, variables, context, train):
        """Returns the updates `[depth, matrices, dim, dim]`."""
        if self.per_task == "one" or (self.per_task == "mean" and train):
            params = variables["params"]
            return self.alpha / self.rank * (params["a"] @ params["b"])
        sets, tasks = with_trained_set(variables, context), jnp.arange(self.num_tasks)
        weights = (tasks <= context.task) * self.alpha / self.rank
        if self.per_task == "mean":
            weights /= context.task + 1
        return jnp.einsum("t,tbmdr,tbmre->bmde", weights, sets["a"], sets["b"])


def build(options: ConfigDict, *, dim: int, key_dim: int, depth: int, num_tasks: int) -> LoRA:
    """Returns the updates of an option section, see `models.learners.base`."""
    del key_dim
    return LoRA(**{key: options[key] for key in OPTIONS}, dim=dim, depth=depth, num_tasks=num_tasks)
