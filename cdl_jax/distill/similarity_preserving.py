"""Similarity-preserving distillation (Tung and Mori, ICCV 2019).

The student learns which images of a batch have similar features.
"""

import jax
from ml_collections import ConfigDict

from cdl_jax.distill import kd
from cdl_jax.distill.base import NetworkSpec, Scheme
from cdl_jax.distill.shared import relations
from cdl_jax.options import Option

OPTIONS = {
    **kd.OPTIONS,
    "similarity_weight": Option(3000.0, "weight of the loss on similarities, the paper's gamma"),
    **relations.FEATURE_OPTIONS,
}


def build(options: ConfigDict, teacher: NetworkSpec, student: NetworkSpec) -> Scheme:
    """Returns the scheme of logit distillation plus similarity preservation.

    Its loss is `kd + similarity_weight / batch^2 ||G_teacher - G_student||^2`.

    Raises:
      UserError: a network has no such feature, or all weights are 0.
    """
    losses = {"similarity": (options.similarity_weight, similarity_loss)}
    return relations.build_scheme(options, losses, teacher, student)


def similarity_loss(student: jax.Array, teacher: jax.Array) -> jax.Array:
    """Returns the mean squared difference of similarities, a float32 scalar.

    Args:
      student: float32 `[batch, d_s]`.
      teacher: float32 `[batch, d_t]`.
    """
    return ((similarities(student) - similarities(teacher)) ** 2).mean()


def similarities(features: jax.Array) -> jax.Array:
    """Returns G: inner products of all pairs, each row scaled to length 1.

    >>> import jax.numpy as jnp
    >>> similarities(jnp.array([[1.0, 0.0], [0.0, 2.0]])).tolist()
    [[1.0, 0.0], [0.0, 1.0]]

    Args:
      features: float32 `[n, dim]`.

    Returns:
      float32 `[n, n]`.
    """
    return relations.normalize_rows(features @ features.T)
