"""Attention transfer (Zagoruyko and Komodakis, ICLR 2017), block by block.

The scheme compares the attention of both networks over the patches.
"""

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cdl_jax.distill import kd
from cdl_jax.distill.base import NetworkSpec, Outputs, Scheme
from cdl_jax.distill.fitnets import check_tokens
from cdl_jax.distill.shared import relations
from cdl_jax.errors import UserError
from cdl_jax.options import Option

OPTIONS = {
    **kd.OPTIONS,
    "attention_weight": Option(1000.0, "weight of the loss on attention maps"),
    "map": Option(
        "activations",
        "attention of a patch: the mean square of its token after a block, or the weight that the block's class token "
        "gives it, the mean over heads",
        choices=("activations", "weights"),
    ),
    "blocks": Option(0, "number of compared blocks, evenly spaced up to the last; 0: all blocks of the student"),
}


def build(options: ConfigDict, teacher: NetworkSpec, student: NetworkSpec) -> Scheme:
    """Returns the scheme of logit distillation plus attention transfer.

    Its loss is `kd + attention_weight sum_blocks mean((q_student - q_teacher)^2)`.

    q are attention maps over the patches, each scaled to length 1. The mean is over the batch and the patches.

    Raises:
      UserError: the networks have different numbers of tokens, the student has fewer blocks, or all weights are 0.
    """
    check_tokens(teacher, student)
    relations.check_weights({"attention": options.attention_weight}, options.alpha)
    count = options.blocks or student.depth
    if count > min(student.depth, teacher.depth):
        raise UserError(
            f"distill.blocks={count}, but the student has {student.depth} blocks and the teacher {teacher.depth}: "
            f"choose at most {min(student.depth, teacher.depth)}"
        )
    student_blocks, teacher_blocks = spaced_blocks(count, student.depth), spaced_blocks(count, teacher.depth)

    def loss(variables, student_out, teacher_out, labels, context):
        del variables, labels
        logits = kd.kd_loss(options, student_out["logits"], teacher_out["logits"], context)
        pairs = [(attention_map(options.map, student_out, i), attention_map(options.map, teacher_out, j))
                 for i, j in zip(student_blocks, teacher_blocks, strict=True)]  # fmt: skip
        attention = options.attention_weight * sum(((q - p) ** 2).mean() for q, p in pairs)
        return logits + attention, {"kd": logits, "attention": attention}

    needs = ("logits", *(_output_name(options.map, i) for i in teacher_blocks))
    return Scheme(loss=loss, label_weight=1 - options.alpha, needs=needs)


def spaced_blocks(count: int, depth: int) -> list[int]:
    """Returns the indices of evenly spaced blocks, the last one among them.

    >>> spaced_blocks(3, 12), spaced_blocks(12, 12) == list(range(12))
    ([3, 7, 11], True)

    Args:
      count: number of indices, at least 1.
      depth: number of blocks, at least `count`.
    """
    return (np.arange(1, count + 1) * depth // count - 1).tolist()


def attention_map(kind: str, out: Outputs, block: int) -> jax.Array:
    """Returns the attention of each patch after a block.

    It is float32 `[batch, patches]`, of length 1 for each image.

    Args:
      kind: "activations" or "weights", see `OPTIONS`.
      out: named outputs of a ViT.
      block: index of the block.
    """
    value = out[_output_name(kind, block)].astype(jnp.float32)
    patches = (value[:, 1:] ** 2).mean(axis=-1) if kind == "activations" else value[:, :, 0, 1:].mean(axis=1)
    return relations.normalize_rows(patches)


def _output_name(kind, block):
    return f"block_{block}/tokens" if kind == "activations" else f"attention_{block}"
