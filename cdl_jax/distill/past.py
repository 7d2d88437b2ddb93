"""Distillation of the student's own past over the old classes, beside a teacher.

The past consists of the student's outputs before the task. This is Learning without Forgetting (Li and Hoiem, ECCV
2016) for any learner. In the first task there are no old classes, and the loss of the past is 0.
"""

import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax.distill import kd
from cdl_jax.distill.base import NetworkSpec, Scheme
from cdl_jax.errors import UserError
from cdl_jax.losses import kl_divergence, temperature_option
from cdl_jax.options import Option

OPTIONS = {
    **kd.OPTIONS,
    "past_weight": Option(1.0, "weight of the divergence from the student's own outputs before the task", above=0),
    "past_temperature": temperature_option(2.0),
}


def build(options: ConfigDict, teacher: NetworkSpec, student: NetworkSpec) -> Scheme:
    """Returns the scheme of logit distillation from the teacher and from the past.

    Its loss is `kd + past_weight past_temperature^2 KL(past || student)`, the last term over the old classes.

    With `alpha=0` the student has no teacher.

    Raises:
      UserError: the stream has one task, so there is no past.
    """
    del teacher
    if student.num_tasks == 1:
        raise UserError("distill.name='past': a stream of one task has no past: choose kd, or more tasks")

    def loss(variables, student_out, teacher_out, labels, context):
        del variables, labels
        logits, past_logits = student_out["logits"], student_out["past"]["logits"]
        old = jnp.arange(student.num_classes) < context.first
        divergence = kl_divergence(logits, past_logits, old, options.past_temperature)
        past = options.past_weight * options.past_temperature**2 * divergence
        if not options.alpha:
            return past, {"past": past}
        distilled = kd.kd_loss(options, logits, teacher_out["logits"], context)
        return distilled + past, {"kd": distilled, "past": past}

    needs = ("logits",) if options.alpha else ()
    return Scheme(
        loss=loss,
        label_weight=1 - options.alpha,
        needs=needs,
        keeps_past=True,
        needs_own_classes="with scheme 'past' distills over the classes that earlier tasks alone have",
    )
