"""Mean squared error of logits (Ba and Caruana, NeurIPS 2014).

The mean is by default over the classes of the current task.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax.distill import kd
from cdl_jax.distill.base import NetworkSpec, Scheme
from cdl_jax.options import Option

OPTIONS = {
    "alpha": kd.OPTIONS["alpha"],
    "classes": Option(
        "current", "compared classes: of the current task, or all seen so far", choices=("current", "seen")
    ),
}


def build(options: ConfigDict, teacher: NetworkSpec, student: NetworkSpec) -> Scheme:
    """Returns the scheme of the mean squared error of logits.

    Its loss is `alpha mean((z_student - z_teacher)^2)`, the mean over images and compared classes.
    """
    del teacher

    def loss(variables, student_out, teacher_out, labels, context):
        del variables, labels
        mask = context.mask(options.classes, student.num_classes)
        value = options.alpha * mse(student_out["logits"], teacher_out["logits"], mask)
        return value, {"mse": value}

    return Scheme(loss=loss, label_weight=1 - options.alpha)


def mse(student_logits: jax.Array, teacher_logits: jax.Array, mask: jax.Array) -> jax.Array:
    """Returns the mean squared difference over masked classes, a float32 scalar.

    >>> mse(jnp.array([[1.0, 9.0]]), jnp.array([[3.0, 0.0]]), jnp.array([True, False])).item()
    4.0

    Args:
      student_logits: `[batch, classes]`.
      teacher_logits: `[batch, classes]`.
      mask: bool `[classes]`.
    """
    squares = (student_logits.astype(jnp.float32) - teacher_logits.astype(jnp.float32)) ** 2
    return (jnp.where(mask, squares, 0.0).sum(axis=-1) / mask.sum()).mean()
