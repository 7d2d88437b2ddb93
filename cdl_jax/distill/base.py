"""The contract of a distillation scheme.

A scheme's file offers `OPTIONS`, its option section, and `build(options, teacher, student) -> Scheme`; `teacher` and
`student` are of type `Spec`. It may offer `PRESET`, `{section: {option: value}}`: defaults of other sections with which
the scheme was published (options that a section lacks are passed over).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from cdl_jax.losses import Context
from cdl_jax.models.vit import Prompt


@dataclass(frozen=True)
class NetworkSpec:
    """What a scheme may know of a network and of the stream.

    dim: width. depth: number of blocks. tokens: class token and patches.
    head: the network's kind of head, a Flax module from `[batch, dim]` to logits of all classes of the stream.
    learner: the option section of the prompt pools.
    outputs: shapes of the named outputs of a teacher that another run has trained.
    task_sizes: the number of classes of each task.
    """

    dim: int
    depth: int
    tokens: int
    num_classes: int
    num_tasks: int
    head: Any
    learner: Any
    outputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    task_sizes: tuple[int, ...] = ()


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
    second_head(variables, student) -> logits `[batch, classes]` of a head beside the student's own; None without one.
    second_weight: that head's share of what is predicted; the student's own has the rest.
    """

    loss: Callable[[Any, Mapping, Mapping, jax.Array, Context], tuple[jax.Array, dict]]
    label_weight: float = 1.0
    needs: tuple[str, ...] = ("logits",)
    init: Callable[[jax.Array], Any] = _no_variables
    start_task: Callable[[Any, Context, jax.Array], Any] = _nothing_changes
    student_inputs: Callable[[Any, Mapping, int, Context, bool], StudentInputs] = _nothing_added
    second_head: Callable[[Any, Mapping], jax.Array] | None = None
    second_weight: float = 0.0

    @property
    def changes_prediction(self) -> bool:
        """Whether the student has anything of the scheme's at test time."""
        return self.second_head is not None or self.student_inputs is not _nothing_added

    def predict(self, variables, student) -> jax.Array:
        """Logits `[batch, classes]` at test time."""
        return self.predict_with_weights(variables, student, (self.second_weight,))[0]

    def predict_with_weights(self, variables, student, weights: Sequence[float]) -> list[jax.Array]:
        """`predict` for each of several values in place of `second_weight`."""
        if self.second_head is None:
            return [student["logits"] for _ in weights]
        own, second = student["logits"], self.second_head(variables, student)
        return [(1 - weight) * own + weight * second for weight in weights]
