"""The one trained teacher of `kd`, `vkd` and `gan`.

The teacher is a network with the weights of a file, or of a finished run.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax import plugins
from cdl_jax.errors import UserError
from cdl_jax.losses import Context
from cdl_jax.methods.base import StreamInfo, Variables
from cdl_jax.methods.shared import finished_run
from cdl_jax.models import weights
from cdl_jax.models.modules.conv import apply
from cdl_jax.options import Option

OPTIONS = {
    "teacher_checkpoint": Option(
        "same_task",
        "for a finished run: its network after the task that the student is training, or after the last task",
        choices=("same_task", "last"),
    ),
    "teacher_network": Option(
        "", 'a network of that run; empty: "teacher" if the run trained one of that name, else its last'
    ),
}


class Teacher(Protocol):
    """The functions of `ModuleTeacher` and `finished_run.RunTeacher`."""

    def init(self, key: jax.Array) -> Variables:
        """Returns variables of the right shapes."""

    def load_pretrained(self, variables: Variables) -> Variables:
        """Returns `variables`, or their shapes, with the teacher's weights."""

    def outputs(self, variables: Variables, images: jax.Array, context: Context) -> dict[str, Any]:
        """Returns `logits` `[batch, classes]` and other named outputs."""


@dataclass(frozen=True)
class ModuleTeacher:
    """A Flax module of any family, in evaluation mode.

    Attributes:
      module: called as `module(images, train=...) -> (logits, outputs by name)`.
      info: the student's stream.
      image_size: side of the images in pixels.
      weights: file of the weights, see `models.weights.load_network`.
      torch_name: names of the family's arrays in PyTorch's state dicts, or None.
    """

    module: nn.Module
    info: StreamInfo
    image_size: int
    weights: str | tuple[str, str]
    torch_name: Callable | None = None

    def init(self, key: jax.Array) -> Variables:
        """Returns random variables."""
        return self.module.init(key, jnp.zeros((1, self.image_size, self.image_size, 3)))

    def load_pretrained(self, variables: Variables) -> Variables:
        """Returns the variables with the weights of the file.

        Raises:
          UserError: the file cannot be read, or has other classes than the stream.
        """
        loaded = weights.load_network(self.weights, variables, "teacher.weights", self.torch_name)
        if self.weights != "random" and _has_missing_weights(loaded):
            raise UserError(
                f"teacher.weights={self.weights!r} has other classes than this stream's {self.info.num_classes}: "
                "train the teacher on them (method supervised) and name that run"
            )
        return loaded

    def outputs(self, variables: Variables, images: jax.Array, context: Context) -> dict[str, Any]:
        """Returns the module's named outputs, `logits` `[batch, classes]` included."""
        (logits, out), _ = apply(self.module, variables, images, False, context.key)
        return {**out, "logits": logits}


def build(config: ConfigDict, info: StreamInfo, options: ConfigDict, *, torch_names: bool = False) -> Teacher:
    """Builds the teacher of the section `teacher`.

    Its `weights` name a file or the folder of a finished run.

    Args:
      config: with the sections `teacher`, `student` and `augment`.
      info: the student's stream.
      options: a section with the keys of `OPTIONS`.
      torch_names: whether a file may be a PyTorch state dict.

    Raises:
      UserError: there is no such file or run, or it has another architecture.
    """
    section = config.teacher
    if finished_run.is_run(section.weights):
        return build_run_teacher(config, info, options)
    if section.weights not in ("", "random") and not section.weights.startswith("package:"):
        weights.find(section.weights, "teacher.weights")
    if (size := section.image_size) != config.student.image_size:
        raise UserError(
            f"teacher.image_size={size} differs from student.image_size={config.student.image_size}: set them equal, "
            "or name a run, for which images are resized"
        )
    family = plugins.load_plugin("models", section.family)
    torch_name = family.torch_name if torch_names else None
    return ModuleTeacher(family.build(section, info.num_classes), info, size, weights.from_section(section), torch_name)


def build_run_teacher(config: ConfigDict, info: StreamInfo, options: ConfigDict) -> finished_run.RunTeacher:
    """Builds the teacher of the section `teacher` from a finished run.

    The section's `weights` name the folder of the run.

    Args:
      config: with the sections `teacher` and `augment`.
      info: the student's stream.
      options: a section with the keys of `OPTIONS`.

    Raises:
      UserError: there is no such run, or it has another architecture.
    """
    section = config.teacher
    teacher = finished_run.find_teacher(
        section.weights, options.teacher_network, options.teacher_checkpoint, info, config.augment
    )
    trained = teacher.config.get(teacher.network.removesuffix("_ema"), {})
    ignored = ("weights", "weights_key", "image_size", "drop_path", "dropout", "remat", "attention")
    different = [key for key, value in section.items() if key not in ignored and trained.get(key) != value]
    if different:
        key = different[0]
        raise UserError(
            f"teacher.weights={section.weights!r} is a run of another architecture ({key}: "
            f"{trained.get(key, 'absent')!r} instead of {section[key]!r}): name its network after teacher="
        )
    return teacher


def _has_missing_weights(variables):
    """Returns whether leaves are still shapes, as in a head of other classes."""
    return any(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(variables))
