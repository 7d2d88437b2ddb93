"""Logit standardization (Sun et al., CVPR 2024) before logit distillation.

The standardized logits have mean 0 and variance 1.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax.distill import kd
from cdl_jax.distill.base import NetworkSpec, Scheme
from cdl_jax.options import Option

OPTIONS = {
    **kd.OPTIONS,
    "logit_weight": Option(9.0, "factor of the distillation loss beside alpha"),
}


def build(options: ConfigDict, teacher: NetworkSpec, student: NetworkSpec) -> Scheme:
    """Returns the scheme of logit standardization.

    Its loss is `logit_weight alpha temperature^2 KL(Z(teacher) || Z(student))`.
    """
    del teacher

    def loss(variables, student_out, teacher_out, labels, context):
        del variables, labels
        mask = context.mask(options.classes, student.num_classes)
        logits = (standardize(out["logits"], mask) for out in (student_out, teacher_out))
        value = options.logit_weight * kd.kd_loss(options, *logits, context)
        return value, {"kd": value}

    return Scheme(loss=loss, label_weight=1 - options.alpha)


def standardize(logits: jax.Array, mask: jax.Array, epsilon: float = 1e-7) -> jax.Array:
    """Returns each row with mean 0 and variance 1, float32 `[batch, classes]`.

    It is `(z - mean) / (epsilon + standard deviation)`, and 0 without a gradient for a row of equal logits.

    The standard deviation is that of a sample: the sum of n squares is divided by n - 1.

    >>> standardize(jnp.array([[1.0, 3.0, 50.0]]), jnp.array([True, True, False])).round(4)[0, :2].tolist()
    [-0.707099974155426, 0.707099974155426]

    Args:
      logits: `[batch, classes]`.
      mask: bool `[classes]`, the classes of mean and deviation.
      epsilon: added to the deviation.
    """
    logits, count = logits.astype(jnp.float32), mask.sum()
    centered = logits - jnp.where(mask, logits, 0.0).sum(axis=-1, keepdims=True) / count
    squares = jnp.where(mask, centered**2, 0.0).sum(axis=-1, keepdims=True)
    is_flat = squares <= 1e-12  # such as of a head that begins at 0, whose gradient would be divided by epsilon
    deviation = jnp.sqrt(jnp.where(is_flat, 1.0, squares) / jnp.maximum(count - 1, 1))
    return jnp.where(is_flat, 0.0, centered / (epsilon + deviation))
