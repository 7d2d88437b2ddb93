"""The contract of a distillation scheme.

A scheme's file offers `OPTIONS`, its option section, and `build(options, teacher, student) -> Scheme`; `teacher` and
`student` are of type `Spec`. It may offer `PRESET`, `{section: {option: value}}`: defaults of other sections with which
the scheme was published (options that a section lacks are passed over).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import jax

from cdl_jax.losses import Context
from cdl_jax.models.vit import Prompt


@dataclass(frozen=True)
class Spec:
    """What a scheme may know of a network and of the stream.

    dim: width. depth: number of blocks. tokens: class token and patches.
    head: the network's kind of head, a Flax module from `[batch, dim]` to logits of all classes of the stream.
    learner: the option section of the prompt pools.
    """

    dim: int
    depth: int
    tokens: int
    num_classes: int
    num_tasks: int
    head: Any
    learner: Any


@dataclass(frozen=True)
class StudentInputs:
    """What a scheme adds to the student: prompts by layer, tokens `[batch, n, dim]` before or behind its own."""

    prompts: Mapping[int, Prompt] = field(default_factory=dict)
    first_tokens: jax.Array | None = None
    last_tokens: jax.Array | None = None


def _no_variables(key):
    del key
    return {}


def _nothing_changes(variables, context, key):
    del context, key
    return variables


def _nothing_added(variables, teacher, batch_size, context, train):
    del variables, teacher, batch_size, context, train
    return StudentInputs()


def _own_logits(variables, student):
    del variables
    return student["logits"]


@dataclass(frozen=True)
class Scheme:
    """How a teacher's outputs enter the student's training. All functions are pure.

    loss(variables, student, teacher, labels, context) -> (scalar, {name: scalar}): the distillation term with its
      weight. `student` and `teacher` hold `logits` `[batch, classes]`, the `prompts` (a `Selection`) and the backbone's
      named outputs (see `models.vit.ViT`); the teacher's are constants.
    label_weight: factor of the student's cross-entropy.
    needs: names of what the loss reads of the teacher's outputs; none where it needs no teacher.
    init(key) -> variables: the scheme's own, as a Flax module has them: what is under "params" is trained with the
      student, what is under "state" is not.
    start_task(variables, context, key) -> variables: those with which a task begins.
    student_inputs(variables, teacher, batch_size, context, train) -> StudentInputs. `train` as the pools have it.
    predict(variables, student) -> logits `[batch, classes]` at test time.
    """

    loss: Callable[[Any, Mapping, Mapping, jax.Array, Context], tuple[jax.Array, dict]]
    label_weight: float = 1.0
    needs: tuple[str, ...] = ("logits",)
    init: Callable[[jax.Array], Any] = _no_variables
    start_task: Callable[[Any, Context, jax.Array], Any] = _nothing_changes
    student_inputs: Callable[[Any, Mapping, int, Context, bool], StudentInputs] = _nothing_added
    predict: Callable[[Any, Mapping], jax.Array] = _own_logits
