"""The contract of a distillation scheme.

A scheme's file offers `OPTIONS`, its option section, and `build(options, teacher, student) -> Scheme`; `teacher` and
`student` are of type `Spec`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from cdl_jax.losses import Context
from cdl_jax.models.vit import Prompt


@dataclass(frozen=True)
class Spec:
    """What a scheme may know of a network: width `dim`, number of blocks `depth`, and `num_classes` of the stream."""

    dim: int
    depth: int
    num_classes: int


@dataclass(frozen=True)
class StudentInputs:
    """What a scheme adds to the student: prompts by layer, tokens `[batch, n, dim]` before or behind its own."""

    prompts: Mapping[int, Prompt] = field(default_factory=dict)
    first_tokens: jax.Array | None = None
    last_tokens: jax.Array | None = None


def _no_parameters(key):
    del key
    return {}


def _nothing_added(params, teacher, batch_size):
    del params, teacher, batch_size
    return StudentInputs()


def _own_logits(params, student):
    del params
    return student["logits"]


@dataclass(frozen=True)
class Scheme:
    """How a teacher's outputs enter the student's training. All functions are pure.

    loss(params, student, teacher, labels, context) -> (scalar, {name: scalar}): the distillation term with its weight.
      `student` and `teacher` hold `logits` `[batch, classes]` and the backbone's named outputs (see `models.vit.ViT`);
      the teacher's are constants.
    label_weight: factor of the student's cross-entropy.
    needs_teacher: False where no teacher is trained at all.
    init(key) -> params: the scheme's own parameters, trained with the student.
    student_inputs(params, teacher, batch_size) -> StudentInputs.
    predict(params, student) -> logits `[batch, classes]` at test time.
    """

    loss: Callable[[Any, Mapping, Mapping, jax.Array, Context], tuple[jax.Array, dict]]
    label_weight: float = 1.0
    needs_teacher: bool = True
    init: Callable[[jax.Array], Any] = _no_parameters
    student_inputs: Callable[[Any, Mapping, int], StudentInputs] = _nothing_added
    predict: Callable[[Any, Mapping], jax.Array] = _own_logits
