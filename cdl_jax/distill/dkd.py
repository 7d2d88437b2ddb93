"""Decoupled knowledge distillation (Zhao et al., CVPR 2022) over the current task's classes.

The divergence to the teacher is split into that of "target class or not" (TCKD) and that among the other classes
(NCKD), each with a weight of its own.
"""

import jax
import jax.numpy as jnp

from cdl_jax.distill import kd
from cdl_jax.distill.base import Scheme
from cdl_jax.losses import kl_divergence, mask_classes

OPTIONS = {
    "alpha": 0.5,  # weight of the whole term; the labels' cross-entropy gets 1 - alpha
    "temperature": 4.0,
    "target_weight": 1.0,  # of TCKD, the paper's alpha
    "other_weight": 4.0,  # of NCKD, the paper's beta
    "classes": "current",
}


def build(options, teacher, student) -> Scheme:
    """`alpha (target_weight TCKD + other_weight NCKD)`.

    Raises:
      UserError: a value out of range.
    """
    del teacher
    kd.check(options)

    def loss(variables, student_out, teacher_out, labels, context):
        del variables
        allowed = getattr(context, options.classes)(student.num_classes)
        target, other = decoupled(student_out["logits"], teacher_out["logits"], labels, allowed, options.temperature)
        value = options.alpha * (options.target_weight * target + options.other_weight * other)
        return value, {"dkd": value, "tckd": target, "nckd": other}

    return Scheme(loss=loss, label_weight=1 - options.alpha)


def decoupled(student_logits, teacher_logits, labels, allowed, temperature: float) -> tuple[jax.Array, jax.Array]:
    """(TCKD, NCKD), both times the squared temperature and averaged over the batch.

    Args:
      student_logits, teacher_logits: `[batch, classes]`.
      labels: int32 `[batch]`.
      allowed: bool `[classes]`, the columns that count; at least two, the label among them.
    """
    is_target = jax.nn.one_hot(labels, student_logits.shape[-1], dtype=bool)

    def binary(logits):
        log_p = jax.nn.log_softmax(mask_classes(logits / temperature, allowed))
        target = jnp.where(is_target, log_p, 0).sum(axis=-1)
        other = jax.nn.logsumexp(mask_classes(log_p, allowed & ~is_target), axis=-1)
        return jnp.stack([target, other], axis=-1)

    log_s, log_t = binary(student_logits), binary(teacher_logits)
    tckd = (jnp.exp(log_t) * (log_t - log_s)).sum(axis=-1).mean()
    nckd = kl_divergence(student_logits, teacher_logits, allowed & ~is_target, temperature)
    return temperature**2 * tckd, temperature**2 * nckd
