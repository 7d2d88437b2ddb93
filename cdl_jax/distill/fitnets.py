"""FitNets (Romero et al., 2015): logit distillation and a loss on the last tokens.

The scheme has the form of CDL's baseline.
"""

import flax.linen as nn
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax.distill import kd
from cdl_jax.distill.base import NetworkSpec, Scheme
from cdl_jax.errors import UserError
from cdl_jax.models.modules import heads
from cdl_jax.options import Option

OPTIONS = {
    **kd.OPTIONS,
    "feature_weight": Option(
        0.1, "weight of the feature loss; the published two-device runs sum this loss over devices: 0.2"
    ),
}


def build(options: ConfigDict, teacher: NetworkSpec, student: NetworkSpec) -> Scheme:
    """Returns the scheme `kd + feature_weight MSE(W x_student + b, x_teacher)`.

    x are all tokens after the last block, before the final norm.

    Raises:
      UserError: the networks have different numbers of tokens.
    """
    check_tokens(teacher, student)
    regressor = nn.Dense(teacher.dim, kernel_init=heads.torch_kernel, bias_init=heads.torch_bias(student.dim))

    def loss(variables, student_out, teacher_out, labels, context):
        del labels
        logits = kd.kd_loss(options, student_out["logits"], teacher_out["logits"], context)
        mapped = regressor.apply(variables, student_out[f"block_{student.depth - 1}/tokens"])
        difference = mapped - teacher_out[f"block_{teacher.depth - 1}/tokens"]
        feature = options.feature_weight * (difference**2).mean()
        return logits + feature, {"kd": logits, "feature": feature}

    return Scheme(
        loss=loss,
        label_weight=1 - options.alpha,
        needs=("logits", f"block_{teacher.depth - 1}/tokens"),
        init=lambda key: regressor.init(key, jnp.zeros((1, student.dim))),
    )


def check_tokens(teacher: NetworkSpec, student: NetworkSpec) -> None:
    """Checks that both networks have the same number of tokens.

    Raises:
      UserError: the numbers differ, or the teacher has no tokens.
    """
    if not teacher.tokens:
        raise UserError(
            "this scheme compares tokens, and the teacher's family has none: choose a scheme that needs only logits"
        )
    if teacher.tokens != student.tokens:
        raise UserError(
            f"the teacher has {teacher.tokens} tokens, the student {student.tokens}: this scheme compares them one by "
            "one, choose image_size and patch_size so that both numbers are equal"
        )
