"""Logit distillation (Hinton et al., 2015).

The softmax spans by default the classes of the current task, as in the CDL papers.
"""

from collections.abc import Callable

import jax
from ml_collections import ConfigDict

from cdl_jax.distill.base import NetworkSpec, Outputs, Scheme, Variables
from cdl_jax.losses import Context, kl_divergence, temperature_option
from cdl_jax.options import Option

OPTIONS = {
    "alpha": Option(
        0.5, "weight of the distillation loss; the cross-entropy with the labels has weight 1 - alpha", maximum=1
    ),
    "temperature": temperature_option(2.0),
    "classes": Option(
        "current", "classes of the softmax: of the current task, or all seen so far", choices=("current", "seen")
    ),
}


def build(options: ConfigDict, teacher: NetworkSpec, student: NetworkSpec) -> Scheme:
    """Returns the scheme `alpha temperature^2 KL(teacher || student)`."""
    del teacher, student
    return Scheme(loss=make_loss(options, lambda variables, student: student["logits"]), label_weight=1 - options.alpha)


def make_loss(options: ConfigDict, student_logits: Callable[[Variables, Outputs], jax.Array]) -> Callable:
    """Returns the `Scheme.loss` that distills logits into one head of the student.

    Args:
      options: a section with the keys of `OPTIONS`.
      student_logits: `(variables, student) -> logits` float32 `[batch, classes]` of that head.
    """

    def loss(variables, student_out, teacher_out, labels, context):
        del labels
        value = kd_loss(options, student_logits(variables, student_out), teacher_out["logits"], context)
        return value, {"kd": value}

    return loss


def kd_loss(options: ConfigDict, student_logits: jax.Array, teacher_logits: jax.Array, context: Context) -> jax.Array:
    """Returns `alpha temperature^2 KL(teacher || student)`, averaged over the batch.

    >>> import jax.numpy as jnp
    >>> from cdl_jax.options import defaults
    >>> context = Context(task=1, first=2, end=4, epoch=0, step=0, progress=0.0, key=None)
    >>> student, teacher = jnp.array([[9.0, 9.0, 1.0, 0.0]]), jnp.array([[0.0, 0.0, 1.0, 0.0]])
    >>> float(kd_loss(ConfigDict(defaults(OPTIONS)), student, teacher, context))  # columns 0 and 1 are of another task
    0.0

    Args:
      options: a section with the keys of `OPTIONS`.
      student_logits: `[batch, classes]`.
      teacher_logits: `[batch, classes]`.
      context: position in the stream, which defines the classes of the softmax.
    """
    mask = context.mask(options.classes, student_logits.shape[-1])
    return (
        options.alpha
        * options.temperature**2
        * kl_divergence(student_logits, teacher_logits, mask, options.temperature)
    )
