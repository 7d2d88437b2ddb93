"""ReviewKD (Chen et al., CVPR 2021) for tokens, as in CDL.

The scheme is logit distillation plus a loss on fused tokens. From the last block to the first, the student's tokens are
fused with the result of the block behind. The result of each level is compared with one of the teacher's last blocks.
"""

from collections.abc import Sequence

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax.distill import kd
from cdl_jax.distill.base import NetworkSpec, Scheme
from cdl_jax.distill.fitnets import check_tokens
from cdl_jax.errors import UserError
from cdl_jax.models.modules import heads
from cdl_jax.options import Option

OPTIONS = {
    **kd.OPTIONS,
    "feature_weight": Option(
        0.2, "weight of the feature loss; the published two-device runs sum this loss over devices: 0.4"
    ),
    "levels": Option(0, "number of last blocks to compare; 0: all blocks of the student (12 in the authors' code)"),
}


class Review(nn.Module):
    """Fuses the student's tokens across blocks and maps them to the teacher's width.

    Level 0 is the last block, with `x = norm1(proj1(tokens))`. Each further level fuses its x with the result r of the
    level before, `x = norm2(x * normz(projz(x)) + r * normz(projz(r)))`. The output of a level is `proj2(x)`.

    Attributes:
      levels: number of blocks.
      student_dim: width of the input tokens.
      teacher_dim: width of the output tokens.
    """

    levels: int
    student_dim: int
    teacher_dim: int

    @nn.compact
    def __call__(self, blocks: Sequence[jax.Array]) -> list[jax.Array]:
        """Returns the fused tokens of each block.

        Args:
          blocks: float32 `[batch, tokens, student_dim]` for each of the last `levels` blocks, first to last.

        Returns:
          float32 `[batch, tokens, teacher_dim]` for each of `blocks`, first to last.
        """

        def dense(features, name):
            bias = heads.torch_bias(self.student_dim)
            return nn.Dense(features, kernel_init=heads.torch_kernel, bias_init=bias, name=name)

        def norm(name):
            return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)

        outputs, review = [], None
        for level, tokens in enumerate(reversed(blocks)):
            x = norm(f"norm1_{level}")(dense(self.student_dim, f"proj1_{level}")(tokens))
            if review is not None:
                project, normz = dense(self.student_dim, f"projz_{level}"), norm(f"normz_{level}")
                x = norm(f"norm2_{level}")(x * normz(project(x)) + review * normz(project(review)))
            review = x
            outputs.append(dense(self.teacher_dim, f"proj2_{level}")(x))
        return outputs[::-1]


def build(options: ConfigDict, teacher: NetworkSpec, student: NetworkSpec) -> Scheme:
    """Returns the scheme of logit distillation and a loss on fused tokens.

    The loss is `kd + feature_weight mean_levels MSE(fused student tokens, teacher tokens)`.
    The tokens are those before the final norm.

    Raises:
      UserError: a network has fewer blocks than levels, or the numbers of tokens differ.
    """
    check_tokens(teacher, student)
    levels = options.levels or student.depth
    if levels > min(teacher.depth, student.depth):
        raise UserError(
            f"distill.levels={levels}, but the teacher has {teacher.depth} blocks and the student {student.depth}: "
            "choose at most the smaller number"
        )
    review = Review(levels, student.dim, teacher.dim)

    def loss(variables, student_out, teacher_out, labels, context):
        del labels
        logits = kd.kd_loss(options, student_out["logits"], teacher_out["logits"], context)
        fused = review.apply(variables, [student_out[name] for name in _last_blocks(student.depth, levels)])
        targets = [teacher_out[name] for name in _last_blocks(teacher.depth, levels)]
        errors = [((x - y) ** 2).mean() for x, y in zip(fused, targets, strict=True)]
        feature = options.feature_weight * sum(errors) / levels
        return logits + feature, {"kd": logits, "feature": feature}

    return Scheme(
        loss=loss,
        label_weight=1 - options.alpha,
        needs=("logits", *_last_blocks(teacher.depth, levels)),
        init=lambda key: review.init(key, [jnp.zeros((1, 1, student.dim))] * levels),
    )


def _last_blocks(depth, count):
    return [f"block_{i}/tokens" for i in range(depth - count, depth)]
