"""The contract of a distillation scheme.

The file of a scheme defines two names:

    OPTIONS: the scheme's options, name -> `cdl_jax.options.Option`. They become `config.distill`.
    build(options, teacher, student) -> Scheme: `teacher` and `student` are `NetworkSpec`s.

A file may also define `PRESET`, a dict `{section: {option: value}}` of defaults for other config sections, with which
the scheme was published. Options that a section lacks are ignored.

A file may also define `check_growth(config, num_tasks, new_config, new_num_tasks)`. It raises a UserError if the
scheme's variables of a run cannot begin those of a run with more tasks, see `run.branching`.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import jax

from cdl_jax.losses import Context
from cdl_jax.models.vit import Prompt

# Variables of a Flax module: {"params": ..., "state": ...}.
Variables = Mapping[str, Any]
# Named outputs of a network: `logits`, `prompts` and the intermediates of its backbone.
Outputs = Mapping[str, Any]


@dataclass(frozen=True)
class NetworkSpec:
    """Describes a network and the stream to the `build` function of a scheme.

    Attributes:
      dim: width of the tokens; 0 for a network without tokens.
      depth: number of transformer blocks; 0 for a network without blocks.
      tokens: number of tokens, the class token and the patches; 0 for a network without tokens.
      num_classes: number of classes of the stream.
      num_tasks: number of tasks of the stream.
      head: Flax module of the classifier, `[batch, dim]` to logits `[batch, num_classes]`.
      learner: config section `learner`, with the learner's `name` and its options; None in methods without learners.
      outputs: shapes of the named outputs, for a teacher that another run has trained.
      task_sizes: number of classes of each task.
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
    """Prompts and tokens that a scheme adds to the student.

    Attributes:
      prompts: layer -> `Prompt`, put ahead of the student's own prompt.
      first_tokens: float32 `[batch, n, dim]`, put ahead of the class token.
      last_tokens: float32 `[batch, n, dim]`, put behind the patches.
    """

    prompts: Mapping[int, Prompt] = field(default_factory=dict)
    first_tokens: jax.Array | None = None
    last_tokens: jax.Array | None = None


def _no_variables(key):
    del key
    return {}


def _unchanged(variables, context, key):
    del context, key
    return variables


def _no_inputs(variables, teacher, batch_size, context, train):
    del variables, teacher, batch_size, context, train
    return StudentInputs()


@dataclass(frozen=True)
class Scheme:
    """Defines how a teacher's outputs enter the training of a student.

    All functions are pure. Only `loss` is required.

    >>> def loss(variables, student, teacher, labels, context):
    ...     value = ((student["logits"] - teacher["logits"]) ** 2).mean()
    ...     return value, {"mse": value}
    >>> scheme = Scheme(loss=loss, label_weight=0.5)
    >>> scheme.needs, scheme.changes_prediction
    (('logits',), False)

    Attributes:
      loss: `(variables, student, teacher, labels, context) -> (scalar, {name: scalar})`, the weighted distillation loss
        and its parts for the log. `student` and `teacher` hold `logits` float32 `[batch, classes]`, `prompts` (a
        `Selection`) and the named outputs of the backbone (see `models.vit.ViT`). No gradient flows to the teacher.
      label_weight: factor of the student's cross-entropy with the labels.
      needs: names of the teacher's outputs that `loss` reads. Empty: the student has no teacher.
      init: `key -> variables` of the scheme, as a Flax module has them. The optimizer of the student trains "params";
        "state" is not trained.
      start_task: `(variables, context, key) -> variables` at the start of a task.
      student_inputs: `(variables, teacher, batch_size, context, train) -> StudentInputs`; `train` is a Python bool.
      second_head: `(variables, student) -> logits` float32 `[batch, classes]` of a second head of the student. None:
        the student has one head.
      second_weight: weight of the second head's logits in the prediction; the student's own head has the rest.
      keeps_past: whether the student before the task is kept. `loss` then finds its named outputs in `student["past"]`;
        they are those of evaluation after the earlier tasks, and no gradient flows to them.
      needs_own_classes: why each task must have classes that no other task has, as the end of a message; "", the
        default: tasks may share classes.
    """

    loss: Callable[[Variables, Outputs, Outputs, jax.Array, Context], tuple[jax.Array, dict[str, jax.Array]]]
    label_weight: float = 1.0
    needs: tuple[str, ...] = ("logits",)
    init: Callable[[jax.Array], Variables] = _no_variables
    start_task: Callable[[Variables, Context, jax.Array], Variables] = _unchanged
    student_inputs: Callable[[Variables, Outputs, int, Context, bool], StudentInputs] = _no_inputs
    second_head: Callable[[Variables, Outputs], jax.Array] | None = None
    second_weight: float = 0.0
    keeps_past: bool = False
    needs_own_classes: str = ""

    @property
    def changes_prediction(self) -> bool:
        """Whether the student's prediction depends on the scheme's variables or inputs."""
        return self.second_head is not None or self.student_inputs is not _no_inputs

    def predict(self, variables: Variables, student: Outputs) -> jax.Array:
        """Returns the student's logits float32 `[batch, classes]` for evaluation."""
        return self.predict_with_weights(variables, student, (self.second_weight,))[0]

    def predict_with_weights(self, variables: Variables, student: Outputs, weights: Sequence[float]) -> list[jax.Array]:
        """Returns the logits of `predict` for each weight of the second head.

        >>> import jax.numpy as jnp
        >>> second_head = lambda variables, student: jnp.array([[3.0, 3.0]])
        >>> scheme = Scheme(loss=lambda *_: (0.0, {}), second_head=second_head)
        >>> first, mean = scheme.predict_with_weights({}, {"logits": jnp.array([[1.0, 5.0]])}, (0.0, 0.5))
        >>> mean.tolist()
        [[2.0, 4.0]]

        Args:
          variables: of the scheme.
          student: named outputs of the student.
          weights: values to use instead of `second_weight`.
        """
        if self.second_head is None:
            return [student["logits"] for _ in weights]
        first, second = student["logits"], self.second_head(variables, student)
        return [(1 - weight) * first + weight * second for weight in weights]
