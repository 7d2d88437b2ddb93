"""Classic distillation (Hinton et al., 2015): a student learns from labels and from a teacher that is trained already.

As OKDDip (arXiv 1912.00350) compares with it: `CE(z) + alpha KL(z, z_teacher)`, the squared temperature within KL,
neither ramp-up nor `1 - alpha`. The teacher is in evaluation mode.
"""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from cdl_jax import optim, plugins
from cdl_jax.errors import UserError
from cdl_jax.losses import cross_entropy
from cdl_jax.methods.base import Method, Outcome, Phase, StreamInfo, Update
from cdl_jax.methods.shared import finished_run, peer_losses
from cdl_jax.models import weights
from cdl_jax.models.modules import families
from cdl_jax.models.modules.conv import apply

OPTIONS = {
    **peer_losses.OPTIONS,
    # Of a teacher's run: its network after the task that the student learns ("same_task"), or after its "last".
    "teacher_checkpoint": "same_task",
    "teacher_network": "",  # which network of that run; "": "teacher" where the run trained one, else its last
}


def defaults(network="resnet32", teacher="resnet110") -> dict:
    """The config sections of this method, for the named networks of student and teacher.

    `teacher.weights` names the working directory of a finished run of the method `supervised`, or its `weights.npz`.
    """
    sizes = {
        "student": families.network_options(network),
        "teacher": {**families.network_options(teacher), "weights": ""},
    }
    return {"kd": OPTIONS, **sizes}


@dataclass(frozen=True)
class KD(Method):
    """See `methods.base.Method`. `teacher` is a module, or a `finished_run.RunTeacher` of another run."""

    student: Any
    teacher: Any
    options: Any
    info: StreamInfo
    image_size: int
    weights: tuple[str | tuple[str, str], str | tuple[str, str]]
    epochs: int
    optimizer: optim.Optimizer
    networks: tuple[str, ...] = ("teacher", "student")
    external: tuple[str, ...] = ("teacher",)

    @property
    def phases(self):
        trained = lambda path: path[:2] == ("student", "params")  # noqa: E731
        return (Phase("student", self.epochs, (Update(trained, self.optimizer, self.loss),)),)

    def init(self, key):
        images = jnp.zeros((1, self.image_size, self.image_size, 3))
        of_run = isinstance(self.teacher, finished_run.RunTeacher)
        teacher = self.teacher.init() if of_run else self.teacher.init(jax.random.fold_in(key, 1), images)
        return {"student": self.student.init(jax.random.fold_in(key, 0), images), "teacher": teacher}

    def load_pretrained(self, variables):
        of_student, of_teacher = self.weights
        student = weights.load_network(of_student, variables["student"], "student.weights")
        if isinstance(self.teacher, finished_run.RunTeacher):
            return {"student": student, "teacher": self.teacher.load()}
        return {
            "student": student,
            "teacher": weights.load_network(of_teacher, variables["teacher"], "teacher.weights"),
        }

    def is_frozen(self, path):
        return path[0] == "teacher"

    def loss(self, variables, batch, context):
        (logits, _), stats = apply(self.student, variables["student"], batch["images"], True, context.key)
        taught = jax.lax.stop_gradient(self._told(variables, batch["images"], context))
        allowed = context.current(self.info.num_classes)
        total, named = terms(self.options, logits, taught, batch["labels"], allowed)
        return total, Outcome({"loss": total, **named}, variables={"student": stats} if stats else {})

    def predict(self, variables, images, context):
        (logits, _), _ = apply(self.student, variables["student"], images, False, context.key)
        return {"teacher": self._told(variables, images, context), "student": logits}, {}

    def export(self, variables):
        """File name -> variables that the run writes when it is finished."""
        return {"weights": variables["student"]}

    def _told(self, variables, images, context):
        if isinstance(self.teacher, finished_run.RunTeacher):
            return self.teacher.outputs(variables["teacher"], images, context)["logits"]
        return apply(self.teacher, variables["teacher"], images, False, context.key)[0][0]


def terms(options, logits, teacher_logits, labels, allowed):
    """(total, named terms) of logits `[batch, classes]`."""
    true = cross_entropy(logits, labels, allowed)
    target = peer_losses.soften(teacher_logits, allowed, options.temperature)
    taught = peer_losses.distillation_loss(logits, target, allowed, options)
    return true + options.alpha * taught, {"true_loss": true, "teacher_loss": taught}


def build(config, info: StreamInfo) -> KD:
    """The method that `config` describes, for the stream of `info`.

    Raises:
      UserError: an option out of range, or a teacher that is missing or of another architecture.
    """
    peer_losses.check("kd", config.kd)
    if config.kd.teacher_checkpoint not in ("same_task", "last"):
        raise UserError(f"kd.teacher_checkpoint={config.kd.teacher_checkpoint!r}: use 'same_task' or 'last'")
    student, size = config.student, config.student.image_size
    return KD(
        student=plugins.load_plugin("models", student.family).build(student, info.num_classes),
        teacher=teacher_of(config, info, config.kd),
        options=config.kd,
        info=info,
        image_size=size,
        weights=(weights.from_section(student), weights.from_section(config.teacher)),
        epochs=config.train.epochs,
        optimizer=optim.build(config.optim, config.train.epochs),
    )


def teacher_of(config, info, options):
    """Returns the module of the section `teacher`, or the `RunTeacher` of the run that `teacher.weights` names.

    Raises:
      UserError: there is no such file or run, or it is of another architecture.
    """
    section = config.teacher
    if not finished_run.is_run(section.weights):
        if section.weights not in ("", "random") and not section.weights.startswith("package:"):
            weights.find(section.weights, "teacher.weights")
        if (size := section.image_size) != config.student.image_size:
            raise UserError(
                f"teacher.image_size={size} differs from student.image_size={config.student.image_size}: set them "
                "equal, or name a run, for which pictures are resized"
            )
        return plugins.load_plugin("models", section.family).build(section, info.num_classes)
    network, checkpoint = options.teacher_network, options.teacher_checkpoint
    teacher = finished_run.find_teacher(section.weights, network, checkpoint, info, config.augment)
    of_run = teacher.config.get(teacher.network.removesuffix("_ema"), {})
    other = [k for k, v in section.items() if k not in ("weights", "weights_key", "image_size") and of_run.get(k) != v]
    if other:
        raise UserError(
            f"teacher.weights={section.weights!r} is a run of another architecture ({other[0]}: "
            f"{of_run.get(other[0], 'absent')!r} instead of {section[other[0]]!r}): name its network after teacher="
        )
    return teacher
