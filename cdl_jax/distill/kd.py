"""Logit distillation (Hinton et al., 2015) over the current task's classes, as in the CDL papers."""

from cdl_jax.distill.base import Scheme
from cdl_jax.errors import UserError
from cdl_jax.losses import kl_divergence

OPTIONS = {
    "alpha": 0.5,  # weight of the distillation; the labels' cross-entropy gets 1 - alpha
    "temperature": 2.0,
    "classes": "current",  # or "seen": those of the earlier tasks too
}


def build(options, teacher, student) -> Scheme:
    """`alpha temperature^2 KL(teacher || student)`, softmax over the columns that `options.classes` names.

    Raises:
      UserError: a value out of range.
    """
    del teacher, student
    check(options)

    def loss(variables, student_out, teacher_out, labels, context):
        del variables, labels
        value = kd_loss(options, student_out["logits"], teacher_out["logits"], context)
        return value, {"kd": value}

    return Scheme(loss=loss, label_weight=1 - options.alpha)


def kd_loss(options, student_logits, teacher_logits, context):
    """`alpha temperature^2 KL(teacher || student)` of logits `[batch, classes]`."""
    allowed = getattr(context, options.classes)(student_logits.shape[-1])
    return (
        options.alpha
        * options.temperature**2
        * kl_divergence(student_logits, teacher_logits, allowed, options.temperature)
    )


def check(options) -> None:
    """Refuses values that make no sense.

    Raises:
      UserError: names the option and its range.
    """
    if not 0 <= options.alpha <= 1:
        raise UserError(f"distill.alpha={options.alpha} must lie in [0, 1]")
    if not options.temperature > 0:
        raise UserError(f"distill.temperature={options.temperature} must be above 0")
    if options.classes not in ("current", "seen"):
        raise UserError(f"distill.classes={options.classes!r}: use 'current' or 'seen'")
