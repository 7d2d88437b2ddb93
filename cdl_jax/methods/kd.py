"""Classic distillation (Hinton et al., 2015) from a trained teacher.

The student is trained with labels and the teacher's logits. The loss is `CE(z) + alpha KL(z, z_teacher)`, as in the
baseline of OKDDip (arXiv 1912.00350): KL includes the squared temperature, and there is neither a ramp-up nor
`1 - alpha`. The teacher is in evaluation mode.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax import optim, plugins
from cdl_jax.losses import Context, cross_entropy
from cdl_jax.methods.base import Method, Outcome, Path, Phase, StreamInfo, Update, Variables
from cdl_jax.methods.shared import peer_losses, teachers
from cdl_jax.models import weights
from cdl_jax.models.modules import families
from cdl_jax.models.modules.conv import apply

OPTIONS = {**peer_losses.OPTIONS, **teachers.OPTIONS}


def defaults(network: str = "resnet32", teacher: str = "resnet110") -> dict[str, Mapping[str, Any]]:
    """Returns the config sections for the named networks of student and teacher.

    `teacher.weights` is to name the working directory of a finished run of the method `supervised`, or its
    `weights.npz`.
    """
    sizes = {
        "student": families.network_options(network),
        "teacher": families.network_options(teacher, weights=""),
    }
    return {"kd": OPTIONS, **sizes}


@dataclass(frozen=True)
class KD(Method):
    """Trains a student with labels and a teacher.

    Variables are `{"student": ..., "teacher": ...}`.

    Attributes:
      student: module of the student, `module(images, train=...) -> (logits, outputs by name)`.
      teacher: the trained teacher.
      options: the section `kd`.
      info: the stream.
      image_size: side of the student's images in pixels.
      weights: of the student, see `models.weights.load_network`.
      epochs: passes over the data of a task.
      optimizer: of the student.
    """

    student: nn.Module
    teacher: teachers.Teacher
    options: ConfigDict
    info: StreamInfo
    image_size: int
    weights: str | tuple[str, str]
    epochs: int
    optimizer: optim.Optimizer
    networks: tuple[str, ...] = ("teacher", "student")
    external: tuple[str, ...] = ("teacher",)

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        def is_student_parameter(path):
            return path[:2] == ("student", "params")

        return (Phase("student", self.epochs, (Update(is_student_parameter, self.optimizer, self.loss),)),)

    def init(self, key: jax.Array) -> Variables:
        images = jnp.zeros((1, self.image_size, self.image_size, 3))
        student = self.student.init(jax.random.fold_in(key, 0), images)
        return {"student": student, "teacher": self.teacher.init(jax.random.fold_in(key, 1))}

    def load_pretrained(self, variables: Variables) -> Variables:
        student = weights.load_network(self.weights, variables["student"], "student.weights")
        return {"student": student, "teacher": self.teacher.load_pretrained(variables["teacher"])}

    def is_frozen(self, path: Path) -> bool:
        return path[0] == "teacher"

    def loss(self, variables: Variables, batch: Mapping[str, Any], context: Context) -> tuple[jax.Array, Outcome]:
        """Returns the student's loss, see `methods.base.Update`."""
        (logits, _), statistics = apply(self.student, variables["student"], batch["images"], True, context.key)
        teacher_logits = jax.lax.stop_gradient(self._teacher_logits(variables, batch["images"], context))
        mask = context.current(self.info.num_classes)
        total, metrics = loss_and_metrics(self.options, logits, teacher_logits, batch["labels"], mask)
        new_variables = {"student": statistics} if statistics else {}
        return total, Outcome({"loss": total, **metrics}, variables=new_variables)

    def predict(self, variables: Variables, images: jax.Array, context: Context) -> tuple[dict, dict]:
        (logits, _), _ = apply(self.student, variables["student"], images, False, context.key)
        return {"teacher": self._teacher_logits(variables, images, context), "student": logits}, {}

    def export(self, variables: Variables) -> dict[str, Variables]:
        return {"weights": variables["student"]}

    def _teacher_logits(self, variables, images, context):
        return self.teacher.outputs(variables["teacher"], images, context)["logits"]


def loss_and_metrics(
    options: ConfigDict, logits: jax.Array, teacher_logits: jax.Array, labels: jax.Array, mask: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes `CE + alpha distillation`, averaged over the batch.

    >>> logits, mask = jnp.array([[0.0, 0.0]]), jnp.ones(2, bool)
    >>> from cdl_jax import options
    >>> section = ConfigDict(options.defaults(OPTIONS))
    >>> total, metrics = loss_and_metrics(section, logits, logits, jnp.array([0]), mask)
    >>> round(float(total), 4), round(float(metrics["teacher_loss"]), 4)
    (0.6931, 0.0)

    Args:
      options: a section with the keys of `peer_losses.OPTIONS`.
      logits: `[batch, classes]` of the student.
      teacher_logits: `[batch, classes]`.
      labels: int32 `[batch]`.
      mask: bool `[classes]`, the classes of the softmax.

    Returns:
      The loss, a float32 scalar, and its parts by name.
    """
    label_loss = cross_entropy(logits, labels, mask)
    target = peer_losses.soften(teacher_logits, mask, options.temperature)
    teacher_loss = peer_losses.distillation_loss(logits, target, mask, options)
    return label_loss + options.alpha * teacher_loss, {"true_loss": label_loss, "teacher_loss": teacher_loss}


def build(config: ConfigDict, info: StreamInfo) -> KD:
    """Builds the method from its config.

    Raises:
      UserError: options do not fit together, or the teacher is missing or has another architecture.
    """
    student = config.student
    return KD(
        student=plugins.load_plugin("models", student.family).build(student, info.num_classes),
        teacher=teachers.build(config, info, config.kd),
        options=config.kd,
        info=info,
        image_size=student.image_size,
        weights=weights.from_section(student),
        epochs=config.train.epochs,
        optimizer=optim.build(config.optim, config.train.epochs),
    )
