"""Decoupled knowledge distillation (Zhao et al., CVPR 2022) over the current task's classes.

The divergence to the teacher is split into that of "target class or not" (TCKD) and that among the other classes
(NCKD), each with a weight of its own.
"""

import jax
import jax.numpy as jnp

from cdl_jax.distill import kd
from cdl_jax.distill.base import Scheme
from cdl_jax.errors import UserError
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
      UserError: a value out of range, or a term that is 0 whatever the weights.
    """
    del teacher
    kd.check(options)
    _check_terms(options, student.task_sizes)

    def loss(variables, student_out, teacher_out, labels, context):
        del variables
        allowed = getattr(context, options.classes)(student.num_classes)
        target, other = decoupled(student_out["logits"], teacher_out["logits"], labels, allowed, options.temperature)
        value = options.alpha * (options.target_weight * target + options.other_weight * other)
        return value, {"dkd": value, "tckd": target, "nckd": other}

    return Scheme(loss=loss, label_weight=1 - options.alpha)


def _check_terms(options, task_sizes):
    if not options.alpha:
        return
    if not (options.target_weight or options.other_weight):
        raise UserError(
            "distill.target_weight=0 and distill.other_weight=0: nothing is distilled; raise one of them, or choose "
            "distill.alpha=0 for the labels alone"
        )
    if not options.target_weight and options.classes == "current" and 2 in task_sizes:
        raise UserError(
            f"distill.target_weight=0: task {task_sizes.index(2)} has two classes, so that NCKD spans one and is 0 "
            "whatever the weights; raise distill.target_weight, or say distill.classes='seen'"
        )


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
