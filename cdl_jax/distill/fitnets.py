"""FitNets (Romero et al., 2015) as CDL compares with it: logit distillation, and the last tokens are matched."""

import flax.linen as nn
import jax.numpy as jnp

from cdl_jax.distill import kd
from cdl_jax.distill.base import Scheme
from cdl_jax.errors import UserError
from cdl_jax.models.modules import heads

OPTIONS = {**kd.OPTIONS, "feature_weight": 0.1}  # the published two-device runs sum this term over devices: 0.2 there


def build(options, teacher, student) -> Scheme:
    """`kd + feature_weight MSE(W x_student + b, x_teacher)`; x: all tokens after the last block, before the final norm.

    Raises:
      UserError: a value out of range, or networks with different numbers of tokens.
    """
    kd.check(options)
    check_tokens(teacher, student)
    regressor = nn.Dense(teacher.dim, kernel_init=heads.torch_kernel, bias_init=heads.torch_bias(student.dim))

    def loss(variables, student_out, teacher_out, labels, context):
        del labels
        logits = kd.kd_loss(options, student_out["logits"], teacher_out["logits"], context)
        fitted = regressor.apply(variables, student_out[f"block_{student.depth - 1}/tokens"])
        difference = fitted - teacher_out[f"block_{teacher.depth - 1}/tokens"]
        feature = options.feature_weight * (difference**2).mean()
        return logits + feature, {"kd": logits, "feature": feature}

    return Scheme(
        loss=loss,
        label_weight=1 - options.alpha,
        needs=("logits", f"block_{teacher.depth - 1}/tokens"),
        init=lambda key: regressor.init(key, jnp.zeros((1, student.dim))),
    )


def check_tokens(teacher, student) -> None:
    """Refuses to compare tokens of different patches.

    Raises:
      UserError: names the two numbers.
    """
    if not teacher.tokens:
        raise UserError(
            "this scheme compares tokens, and the teacher's family has none: choose one that needs logits alone"
        )
    if teacher.tokens != student.tokens:
        raise UserError(
            f"the teacher has {teacher.tokens} tokens, the student {student.tokens}: this scheme compares them one by "
            "one, choose image_size and patch_size so that both have as many"
        )
