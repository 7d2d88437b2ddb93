"""Schemes that add a loss on features or relations to logit distillation."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax.distill import kd, vkd
from cdl_jax.distill.base import NetworkSpec, Scheme
from cdl_jax.errors import UserError
from cdl_jax.options import Option

FEATURE_OPTIONS: dict[str, Any] = {
    "student_feature": Option(
        "class_token",
        'the student\'s output to compare: "class_token", "patch_mean", or any named output, averaged over tokens or '
        "positions",
    ),
    "teacher_feature": Option(
        "", 'the teacher\'s output to compare; empty: its output "features" if it has one, else "class_token"'
    ),
}


def build_scheme(
    options: ConfigDict,
    losses: Mapping[str, tuple[float, Callable[[jax.Array, jax.Array], jax.Array]]],
    teacher: NetworkSpec,
    student: NetworkSpec,
) -> Scheme:
    """Returns logit distillation plus weighted losses on feature vectors.

    Each network has one feature vector.

    Args:
      options: a section with the keys of `kd.OPTIONS` and `FEATURE_OPTIONS`.
      losses: name -> (weight, loss), where loss maps the feature of the student `[batch, d_s]` and of the teacher
        `[batch, d_t]`, both float32, to a scalar.
      teacher: describes the teacher.
      student: describes the student.

    Raises:
      UserError: a network has no such feature, or all weights are 0.
    """
    name = teacher_feature_name(options, teacher)
    vkd.feature_width("teacher", name, teacher)
    vkd.feature_width("student", options.student_feature, student)
    check_weights({key: weight for key, (weight, _) in losses.items()}, options.alpha)

    def loss(variables, student_out, teacher_out, labels, context):
        del variables, labels
        features = vkd.feature_vector(student_out, options.student_feature), vkd.feature_vector(teacher_out, name)
        terms = {"kd": kd.kd_loss(options, student_out["logits"], teacher_out["logits"], context)}
        terms |= {key: weight * function(*features) for key, (weight, function) in losses.items()}
        return sum(terms.values()), terms

    needs = ("logits", vkd.output_name(name, teacher.outputs))
    return Scheme(loss=loss, label_weight=1 - options.alpha, needs=needs)


def teacher_feature_name(options: ConfigDict, teacher: NetworkSpec) -> str:
    """Returns the name of the teacher's compared output."""
    return options.teacher_feature or ("features" if "features" in teacher.outputs else "class_token")


def check_weights(weights: Mapping[str, float], alpha: float) -> None:
    """Checks that some loss is distilled.

    Args:
      weights: name of a loss -> weight.
      alpha: weight of logit distillation.

    Raises:
      UserError: all weights are 0.
    """
    if not alpha and not any(weights.values()):
        names = ", ".join(f"distill.{name}_weight" for name in weights)
        raise UserError(
            f"{names} and distill.alpha are 0: nothing is distilled; raise one of them, or set distill=none"
        )


def normalize_rows(x: jax.Array, epsilon: float = 1e-12) -> jax.Array:
    """Returns rows of length 1; a row of zeros stays, with a gradient of 0.

    >>> normalize_rows(jnp.array([[3.0, 4.0], [0.0, 0.0]])).round(3).tolist()
    [[0.6000000238418579, 0.800000011920929], [0.0, 0.0]]

    Args:
      x: float32 `[..., d]`.
      epsilon: the least squared length.
    """
    return x * jax.lax.rsqrt(jnp.maximum((x**2).sum(axis=-1, keepdims=True), epsilon))
