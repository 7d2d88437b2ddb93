"""Relational knowledge distillation (Park et al., CVPR 2019).

The scheme compares distances and angles between the features of a batch.
"""

from functools import partial

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from cdl_jax.distill import kd
from cdl_jax.distill.base import NetworkSpec, Scheme
from cdl_jax.distill.shared import relations
from cdl_jax.options import Option

OPTIONS = {
    **kd.OPTIONS,
    "distance_weight": Option(25.0, "weight of the loss on distances of pairs"),
    "angle_weight": Option(50.0, "weight of the loss on angles of triplets"),
    **relations.FEATURE_OPTIONS,
}


def build(options: ConfigDict, teacher: NetworkSpec, student: NetworkSpec) -> Scheme:
    """Returns the scheme `kd + distance_weight RKD-D + angle_weight RKD-A`.

    Raises:
      UserError: a network has no such feature, or all weights are 0.
    """
    losses = {
        "distance": (options.distance_weight, partial(huber, distances)),
        "angle": (options.angle_weight, partial(huber, angles)),
    }
    return relations.build_scheme(options, losses, teacher, student)


def huber(relation, student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Returns the mean Huber loss (threshold 1) between two batches' relations.

    It is a float32 scalar.

    Args:
      relation: maps features `[batch, dim]` to numbers of the same shape for both networks.
      student: float32 `[batch, d_s]`.
      teacher: float32 `[batch, d_t]`.
    """
    return optax.huber_loss(relation(student), relation(teacher)).mean()


def distances(features: jax.Array) -> jax.Array:
    """Returns the Euclidean distances of all pairs of vectors.

    They are divided by their mean over pairs of different images.

    >>> distances(jnp.array([[0.0], [1.0], [3.0]])).tolist()  # mean (1 + 3 + 2) / 3
    [[0.0, 0.5, 1.5], [0.5, 0.0, 1.0], [1.5, 1.0, 0.0]]

    Args:
      features: float32 `[n, dim]`.

    Returns:
      float32 `[n, n]`.
    """
    squares = ((features[:, None] - features[None]) ** 2).sum(axis=-1)
    is_pair = squares > 0
    lengths = jnp.where(is_pair, jnp.sqrt(jnp.where(is_pair, squares, 1.0)), 0.0)
    return lengths * (jnp.maximum(is_pair.sum(), 1) / jnp.maximum(lengths.sum(), 1e-12))


def angles(features: jax.Array) -> jax.Array:
    """Returns the cosine of the angle at each vector j between vectors i and k.

    It is float32 `[n, n, n]` by j, i, k.

    >>> angles(jnp.array([[0.0, 0.0], [2.0, 0.0], [0.0, 3.0]]))[0].tolist()  # a right angle at the first image
    [[0.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]

    Args:
      features: float32 `[n, dim]`.
    """
    directions = relations.normalize_rows(features[None] - features[:, None])  # from j to i
    return jnp.einsum("jid,jkd->jik", directions, directions)
