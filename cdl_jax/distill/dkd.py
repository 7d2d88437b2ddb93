"""Decoupled knowledge distillation (Zhao et al., CVPR 2022).

The divergence from the teacher is the sum of two parts, each with its own weight: the divergence of "target class or
not" (TCKD), and the divergence among the other classes (NCKD). The classes are by default those of the current task.
"""

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax.distill import kd
from cdl_jax.distill.base import NetworkSpec, Scheme
from cdl_jax.errors import UserError
from cdl_jax.losses import kl_divergence, mask_classes, temperature_option
from cdl_jax.options import Option

OPTIONS = {
    "alpha": kd.OPTIONS["alpha"],
    "temperature": temperature_option(4.0),
    "target_weight": Option(1.0, "weight of TCKD, the paper's alpha"),
    "other_weight": Option(4.0, "weight of NCKD, the paper's beta"),
    "classes": kd.OPTIONS["classes"],
}


def build(options: ConfigDict, teacher: NetworkSpec, student: NetworkSpec) -> Scheme:
    """Returns the scheme `alpha (target_weight TCKD + other_weight NCKD)`.

    Raises:
      UserError: the loss is 0 for all weights of the student.
    """
    del teacher
    _check_terms(options, student.task_sizes)

    def loss(variables, student_out, teacher_out, labels, context):
        del variables
        mask = context.mask(options.classes, student.num_classes)
        tckd, nckd = tckd_and_nckd(student_out["logits"], teacher_out["logits"], labels, mask, options.temperature)
        value = options.alpha * (options.target_weight * tckd + options.other_weight * nckd)
        return value, {"dkd": value, "tckd": tckd, "nckd": nckd}

    return Scheme(loss=loss, label_weight=1 - options.alpha)


def _check_terms(options, task_sizes):
    """Refuses weights and tasks for which the loss is constant."""
    if not options.alpha:
        return
    if not (options.target_weight or options.other_weight):
        raise UserError(
            "distill.target_weight=0 and distill.other_weight=0: nothing is distilled; raise one of them, or set "
            "distill.alpha=0 to train with labels only"
        )
    if options.target_weight:
        return
    if options.classes == "current" and 2 in task_sizes:
        other = ", or set distill.classes='seen'" if task_sizes[0] > 2 else ""
        raise UserError(
            f"distill.target_weight=0: task {task_sizes.index(2)} has two classes, so NCKD spans one class and is "
            f"always 0; raise distill.target_weight{other}"
        )
    if options.classes == "seen" and options.alpha == 1 and task_sizes[:1] == (2,):
        raise UserError(
            "distill.target_weight=0 with distill.alpha=1: task 0 has two classes, so NCKD spans one class and is "
            "always 0, and the labels have the weight 0: nothing is learned; raise distill.target_weight, or lower "
            "distill.alpha"
        )


def tckd_and_nckd(
    student_logits: jax.Array, teacher_logits: jax.Array, labels: jax.Array, mask: jax.Array, temperature: float
) -> tuple[jax.Array, jax.Array]:
    """Returns TCKD and NCKD, multiplied by `temperature^2`.

    Both are float32 scalars, averaged over the batch.

    >>> student, teacher = jnp.array([[0.0, 2.0, 2.0]]), jnp.array([[0.0, 1.0, 1.0]])
    >>> tckd, nckd = tckd_and_nckd(student, teacher, jnp.array([0]), jnp.ones(3, bool), temperature=1.0)
    >>> round(float(tckd), 3), float(nckd)  # both give classes 1 and 2 the same odds
    (0.052, 0.0)

    Args:
      student_logits: `[batch, classes]`.
      teacher_logits: `[batch, classes]`.
      labels: int32 `[batch]`.
      mask: bool `[classes]`, the classes of the softmax; at least two, the label among them.
      temperature: above 0.
    """
    is_target = jax.nn.one_hot(labels, student_logits.shape[-1], dtype=bool)

    def binary_log_probabilities(logits):  # [batch, 2]
        log_p = jax.nn.log_softmax(mask_classes(logits / temperature, mask))
        target = jnp.where(is_target, log_p, 0).sum(axis=-1)
        other = jax.nn.logsumexp(mask_classes(log_p, mask & ~is_target), axis=-1)
        return jnp.stack([target, other], axis=-1)

    log_s, log_t = binary_log_probabilities(student_logits), binary_log_probabilities(teacher_logits)
    tckd = (jnp.exp(log_t) * (log_t - log_s)).sum(axis=-1).mean()
    nckd = kl_divergence(student_logits, teacher_logits, mask & ~is_target, temperature)
    return temperature**2 * tckd, temperature**2 * nckd
