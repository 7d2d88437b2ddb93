"""The contract of a prompt pool, and functions that pools share.

Each file of this package is one continual learner that prompts a frozen backbone. It defines
  OPTIONS: its option section; the defaults are the values published for CIFAR-100 and ImageNet-R;
  build(options, *, dim, key_dim, depth, num_tasks): returns a `Pool` for a backbone of width `dim` with `depth` blocks,
    queries of width `key_dim` and a stream of `num_tasks` tasks.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from cdl_jax.errors import UserError
from cdl_jax.losses import Context
from cdl_jax.models.modules import heads
from cdl_jax.models.vit import Prompt

Variables = Mapping[str, Any]  # {"params": ..., "state": ...}


@struct.dataclass
class Selection:
    """The prompts that a pool selects for a batch.

    Attributes:
      prompts: layer -> Prompt of the backbone.
      loss: float32 scalar, the pool's own loss in training, 0 otherwise.
      selected: `layer_<i>` -> int32 `[batch, pool_size]`, how often each row of the pool is selected for an image. If
        all rows are weighted: float32, the absolute weight of each. Empty if nothing is selected.
      tokens: `[batch, n, dim]`, prompts that are tokens of block 0. The head then reads the mean of their outputs.
        None, the default: there are none, and the head reads the class token.
    """

    prompts: Mapping[int, Prompt]
    loss: jax.Array
    selected: Mapping[str, jax.Array]
    tokens: jax.Array | None = None


class Pool(nn.Module):
    """A prompt pool: a Flax module from queries to a `Selection`.

    Its variables are `{"params": ..., "state": ...}`. The optimizer trains `params`. It does not change `state`, and
    checkpoints contain both. All methods are pure and compiled once for all tasks. Subclasses define `__call__`; the
    other methods have defaults.

    Attributes:
      uses_query: whether the selection depends on the query, default True. If False, the query is not computed.
    """

    uses_query: ClassVar[bool] = True

    def __call__(self, query: jax.Array, context: Context, train: bool) -> Selection:
        """Selects prompts for a batch.

        Args:
          query: float32 `[batch, key_dim]`, the class token of a frozen backbone without prompts.
          context: the position in the run.
          train: whether this is a training step.
        """
        raise NotImplementedError

    @nn.nowrap
    def head(self, num_classes: int) -> nn.Module:
        """Returns the classification head.

        It is a Flax module from features `[batch, dim]` to logits `[batch, num_classes]`. The default is a
        linear layer with torch's initial values.
        """
        return heads.LinearHead(num_classes)

    @nn.nowrap
    def start_task(self, variables: Variables, context: Context, key: jax.Array) -> Variables:
        """Returns the variables with which the task of `context` begins; by default `variables`."""
        del context, key
        return variables

    @nn.nowrap
    def end_task(self, variables: Variables, context: Context) -> Variables:
        """Returns the variables to evaluate after the task of `context`, when all networks have learned it."""
        del context
        return variables

    @nn.nowrap
    def teacher_variables(self, variables: Variables) -> Variables:
        """Returns the variables with which a teacher that has learned the task teaches it, with `train=False`."""
        return variables


def l2_normalize(x: jax.Array) -> jax.Array:
    """Returns `x / max(|x|, 1e-12)` along the last axis; the gradient at zero is zero.

    >>> print(l2_normalize(jnp.array([3.0, 4.0])))
    [0.6 0.8]
    """
    return x / jnp.sqrt(jnp.maximum((x**2).sum(axis=-1, keepdims=True), 1e-24))


def batchwise_top_k(indices: jax.Array, pool_size: int, top_k: int, weight: jax.Array | None = None) -> jax.Array:
    """Selects the `top_k` rows of the pool that most images of the batch select, for all images.

    The batch is the global batch, over all devices.

    Args:
      indices: int32 `[batch, top_k]`, the rows that each image selects.
      pool_size: number of rows of the pool.
      top_k: number of rows to select.
      weight: float32 `[batch]`, 0 for images that do not count. None, the default: all images count.

    Returns:
      int32 `[batch, top_k]`, the most popular row first. Of equally popular rows the lower index is first.

    >>> batchwise_top_k(jnp.array([[2, 0], [2, 1], [0, 2]]), 3, 2).tolist()
    [[2, 0], [2, 0], [2, 0]]
    """
    counts = jax.nn.one_hot(indices, pool_size, dtype=jnp.float32)
    if weight is not None:
        counts *= weight[:, None, None]
    _, major_indices = jax.lax.top_k(counts.sum(axis=(0, 1)), top_k)
    return jnp.broadcast_to(major_indices, indices.shape)


def split_kv(prompts: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Splits prompts `[batch, length, dim]` into the keys and the values of a prefix.

    Returns:
      (keys, values), the first and the second half of the vectors, each `[batch, length / 2, dim]`.

    >>> keys, values = split_kv(jnp.arange(4).reshape(1, 4, 1))
    >>> keys[0, :, 0].tolist(), values[0, :, 0].tolist()
    ([0, 1], [2, 3])
    """
    half = prompts.shape[1] // 2
    return prompts[:, :half], prompts[:, half:]


def check_length(length: int, option: str) -> None:
    """Checks that a prompt can be split into keys and values.

    Raises:
      UserError: `length` is odd or below 2. The message names the option.
    """
    if length < 2 or length % 2:
        raise UserError(f"{option}={length} must be even and at least 2: half of a prompt is keys, half values")


def check_layers(layers: int, depth: int, option: str) -> None:
    """Checks that the backbone has as many blocks as are to be prompted.

    Raises:
      UserError: it has fewer, or none is prompted. The message names the option.
    """
    if not 0 < layers <= depth:
        raise UserError(f"{option}={layers}: the backbone has depth {depth}: choose 1 to {depth}")
