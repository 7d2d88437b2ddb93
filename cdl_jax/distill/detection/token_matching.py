"""Token matching, the distillation of ViDT: Euclidean distances of tokens.

It has no projector and no normalization, so student and teacher need tokens of equal width.

Source:
  Song et al., ICLR 2022, arXiv 2110.03921.
"""

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from cdl_jax.distill.base import NetworkSpec, Outputs, Scheme
from cdl_jax.distill.detection import base
from cdl_jax.errors import UserError

OPTIONS = base.OPTIONS


def build(options: ConfigDict, teacher: NetworkSpec, student: NetworkSpec) -> Scheme:
    """Returns the scheme of token matching.

    Its loss is `weight sqrt(sum_k c_k mean |x_student - x_teacher|)` over the kinds of tokens k. The factor c is 1 for
    each level of patches and for the backbone's detection tokens. For those of the neck it is the number of prediction
    levels.

    Raises:
      UserError: nothing is compared, or the tokens of the detectors have different widths or numbers.
    """
    base.check(options, teacher, student)
    if teacher.dim != student.dim:
        raise UserError(
            f"the teacher's tokens have width {teacher.dim}, the student's {student.dim}: token_matching needs equal "
            "widths; use distill=projected_tokens"
        )

    def loss(variables, student_out, teacher_out, labels, context):
        del variables, labels, context
        total = distance_sums(student_out, teacher_out, options)
        # The root has an infinite gradient at 0, where student and teacher are equal.
        positive = total > 0
        roots = jnp.where(positive, jnp.sqrt(jnp.where(positive, total, 1)), 0).mean()
        return options.weight * roots, {"loss_distil": roots}

    return Scheme(loss=loss, needs=("patch_maps", "body_tokens", "neck_tokens"))


def distance_sums(student: Outputs, teacher: Outputs, options: ConfigDict) -> jax.Array:
    """Computes the weighted sum of mean distances of each group.

    Args:
      student: outputs of the student, with `inside`.
      teacher: outputs of the teacher.
      options: which kinds of tokens are compared.

    Returns:
      `[G]`.
    """
    groups = len(student["inside"][0])
    rows, targets = (base.token_rows(outputs, options, groups) for outputs in (student, teacher))
    counted, total = base.counted_rows(student, rows), jnp.zeros(groups)
    for name in rows:
        factor = len(student["neck_tokens"]) if name == "neck" else 1
        difference = jnp.where(counted[name][..., None], rows[name] - targets[name], 0)
        distances = optax.safe_norm(difference, 0.0, axis=-1)
        total += factor * distances.mean(axis=1, where=counted[name])
    return total
