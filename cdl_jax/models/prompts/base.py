"""Prompt pools: one continual learner a file.

A file offers `OPTIONS`, its option section, whose defaults are the values published for CIFAR-100 and ImageNet-R, and
`build(options, *, dim, key_dim, depth, num_tasks)`, which gives a `Pool`. Where the learner has a head of its own kind,
the file offers `head(options, num_classes)`, a Flax module from features `[batch, dim]` to logits
`[batch, num_classes]`.
"""

from collections.abc import Mapping
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax import struct

from cdl_jax.errors import UserError
from cdl_jax.models.modules import heads
from cdl_jax.models.vit import Prompt


@struct.dataclass
class Selection:
    """What a pool chose for a batch.

    prompts: layer -> Prompt for the backbone.
    loss: scalar, the pool's own loss in training, 0 otherwise.
    selected: `layer_<i>` -> int32 `[batch, pool]`, how often each row of the pool was chosen for each picture; or,
      where all rows are weighed, float32, the absolute weight of each; empty where nothing is chosen.
    tokens: `[batch, n, dim]`, prompts that are tokens of their own from block 0 on; the head then reads the mean of
      their outputs. None: it reads the class token.
    """

    prompts: Mapping[int, Prompt]
    loss: jax.Array
    selected: Mapping[str, jax.Array]
    tokens: jax.Array | None = None


class Pool(nn.Module):
    """A Flax module from `(query [batch, key_dim], context, train)` to a `Selection`.

    Its variables are `{"params": ..., "state": ...}`: the optimizer trains the former; the latter it leaves alone, and
    checkpoints hold both. What follows maps variables to variables; it is pure and compiled once. By default
    nothing changes.

    uses_query: whether what is chosen depends on the query.
    """

    uses_query: ClassVar[bool] = True

    @nn.nowrap
    def head(self, num_classes: int) -> nn.Module:
        """Returns the classification head: a Flax module from features `[batch, dim]` to logits `[batch, num_classes]`.

        The default is a linear layer with torch's initial values.
        """
        return heads.LinearHead(num_classes)

    @nn.nowrap
    def start_task(self, variables, context, key):
        """The variables with which the task of `context` begins."""
        del context, key
        return variables

    @nn.nowrap
    def end_task(self, variables, context):
        """The variables that are evaluated once the task of `context` has been learnt by all networks."""
        del context
        return variables

    @nn.nowrap
    def teacher_variables(self, variables):
        """The variables with which a teacher that has learnt the task teaches it, with `train=False`."""
        return variables


def l2_normalize(x):
    """`x / max(|x|, 1e-12)` along the last axis; the gradient at zero is zero."""
    return x / jnp.sqrt(jnp.maximum((x**2).sum(axis=-1, keepdims=True), 1e-24))


def batchwise_top_k(rows, pool: int, top_k: int, weight=None):
    """The `top_k` rows of the pool that most pictures of the batch chose, for all of them: int32 `[batch, top_k]`.

    The most popular first, and of equally popular ones that of the lower number. The batch is the whole one, over all
    devices.

    Args:
      rows: int32 `[batch, top_k]`, each picture's own choice.
      weight: `[batch]`, 0 for pictures that have no vote; None: all have one.
    """
    votes = jax.nn.one_hot(rows, pool, dtype=jnp.float32)
    if weight is not None:
        votes *= weight[:, None, None]
    _, chosen = jax.lax.top_k(votes.sum(axis=(0, 1)), top_k)
    return jnp.broadcast_to(chosen, rows.shape)


def split_kv(prompts):
    """The prefix (keys, values) of prompts `[batch, length, dim]`: the first half of the vectors, and the rest."""
    half = prompts.shape[1] // 2
    return prompts[:, :half], prompts[:, half:]


def check_length(length: int, option: str) -> None:
    """Refuses prompts that cannot be halved.

    Raises:
      UserError: names the option.
    """
    if length < 2 or length % 2:
        raise UserError(f"{option}={length} must be even and at least 2: half of a prompt is keys, half values")


def check_choice(options, key: str, known: tuple[str, ...]) -> None:
    """Refuses a word that is none of `known`.

    Raises:
      UserError: names the option and the words.
    """
    if options[key] not in known:
        raise UserError(f"learner.{key}={options[key]!r}: use {' or '.join(map(repr, known))}")


def check_layers(layers: int, depth: int, option: str) -> None:
    """Refuses prompts for more blocks than the backbone has.

    Raises:
      UserError: names the option.
    """
    if not 0 < layers <= depth:
        raise UserError(f"{option} asks for prompts in {layers} blocks, the backbone has {depth}: choose 1 to {depth}")
