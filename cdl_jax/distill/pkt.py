"""Probabilistic knowledge transfer (Passalis and Tefas, ECCV 2018).

The scheme compares the neighbors of each image of a batch.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax.distill import kd
from cdl_jax.distill.base import NetworkSpec, Scheme
from cdl_jax.distill.shared import relations
from cdl_jax.options import Option

OPTIONS = {
    **kd.OPTIONS,
    "transfer_weight": Option(1.0, "weight of the divergence of the neighbors' probabilities, summed over a batch"),
    **relations.FEATURE_OPTIONS,
}
_EPSILON = 1e-7


def build(options: ConfigDict, teacher: NetworkSpec, student: NetworkSpec) -> Scheme:
    """Returns the scheme `kd + transfer_weight sum_i KL(p_i teacher || p_i student)`.

    Raises:
      UserError: a network has no such feature, or all weights are 0.
    """
    return relations.build_scheme(options, {"transfer": (options.transfer_weight, transfer_loss)}, teacher, student)


def transfer_loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Returns the divergence of neighbor probabilities, summed over images.

    It is a float32 scalar.

    Args:
      student: float32 `[batch, d_s]`.
      teacher: float32 `[batch, d_t]`.
    """
    p, q = neighbor_probabilities(teacher), neighbor_probabilities(student)
    return (p * jnp.log((p + _EPSILON) / (q + _EPSILON))).sum()


def neighbor_probabilities(features: jax.Array) -> jax.Array:
    """Returns for each image the probabilities of the others as neighbors.

    They are proportional to (1 + cosine) / 2.

    >>> neighbor_probabilities(jnp.array([[1.0, 0.0], [2.0, 0.0], [-1.0, 0.0]])).round(3).tolist()
    [[0.0, 1.0, 0.0], [1.0, 0.0, 0.0], [0.5, 0.5, 0.0]]

    Args:
      features: float32 `[n, dim]`.

    Returns:
      float32 `[n, n]`; rows sum to 1, the diagonal is 0.
    """
    unit = relations.normalize_rows(features)
    kernel = jnp.where(jnp.eye(len(features), dtype=bool), 0.0, (1 + unit @ unit.T) / 2 + _EPSILON)
    return kernel / jnp.maximum(kernel.sum(axis=1, keepdims=True), _EPSILON)
