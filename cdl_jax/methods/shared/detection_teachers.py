"""Detectors as teachers.

A teacher has the weights of a published file, or those of a finished run of the method `vidt`.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax.errors import UserError
from cdl_jax.losses import Context
from cdl_jax.methods.base import StreamInfo, Variables
from cdl_jax.methods.shared import finished_run
from cdl_jax.models import weights
from cdl_jax.models.detection import state_dicts

Batch = Mapping[str, Any]

_SIDE = 64  # pixels, of the images with which a detector is initialized: the smallest canvas


class Teacher(Protocol):
    """The functions of `FileTeacher` and `RunTeacher`."""

    def init(self, key: jax.Array) -> Variables:
        """Returns variables of the right shapes."""

    def load_pretrained(self, variables: Variables) -> Variables:
        """Returns `variables`, or their shapes, with the teacher's weights."""

    def outputs(self, variables: Variables, batch: Batch, context: Context) -> dict[str, Any]:
        """Returns the outputs of the detector, see `models.detection.vidt`."""


@dataclass(frozen=True)
class FileTeacher:
    """A detector with the weights of a file.

    Attributes:
      module: the detector.
      weights: the file, or "random".
    """

    module: nn.Module
    weights: str

    def init(self, key: jax.Array) -> Variables:
        return init(self.module, key)

    def load_pretrained(self, variables: Variables) -> Variables:
        return load(self.weights, variables, "teacher.weights")

    def outputs(self, variables: Variables, batch: Batch, context: Context) -> dict[str, Any]:
        return apply(self.module, variables, batch)


@dataclass(frozen=True)
class RunTeacher:
    """A detector of a finished run; see `finished_run.RunTeacher`."""

    run: finished_run.RunTeacher

    def init(self, key: jax.Array) -> Variables:
        return self.run.init(key)

    def load_pretrained(self, variables: Variables) -> Variables:
        return self.run.load_pretrained(variables)

    def outputs(self, variables: Variables, batch: Batch, context: Context) -> dict[str, Any]:
        variables, context = self.run.at_task(variables, context)
        return self.run.method.teacher_outputs(self.run.network, variables, batch, context)


@dataclass(frozen=True)
class NoTeacher:
    """No teacher: no variables and no outputs."""

    variables: Variables = field(default_factory=dict)

    def init(self, key: jax.Array) -> Variables:
        return self.variables

    def load_pretrained(self, variables: Variables) -> Variables:
        return variables

    def outputs(self, variables: Variables, batch: Batch, context: Context) -> dict[str, Any]:
        return {}


def build(config: ConfigDict, info: StreamInfo, module: nn.Module) -> Teacher:
    """Builds the frozen teacher of the section `teacher`.

    The section's `weights` name a file or the folder of a run.

    Args:
      config: with the sections `teacher`, `student`, `augment` and `vidt`.
      info: the student's stream.
      module: the detector of the section.

    Raises:
      UserError: there is no such run, or it does not fit.
    """
    section = config.teacher
    if section.weights == "":
        raise UserError(
            "config.teacher.weights is empty: name a file of a trained detector or the folder of a finished run, or "
            "set distill=none"
        )
    if not finished_run.is_run(section.weights):
        return FileTeacher(module, section.weights)
    run = finished_run.find_teacher(
        section.weights, config.vidt.teacher_network, config.vidt.teacher_checkpoint, info, config.augment
    )
    if run.config.method != config.method:
        raise UserError(
            f"teacher.weights={section.weights!r} is a run of method {run.config.method!r}: use {config.method}"
        )
    for key in ("mean", "std"):
        if tuple(run.config.augment[key]) != tuple(config.augment[key]):
            raise UserError(
                f"teacher.weights={section.weights!r} was trained with augment.{key}={tuple(run.config.augment[key])}, "
                f"and the student has {tuple(config.augment[key])}: set the teacher's"
            )
    trained = run.config.get(run.network, {})
    different = [key for key, value in section.items() if key not in _OF_TRAINING and trained.get(key) != value]
    if different:
        key = different[0]
        raise UserError(
            f"teacher.weights={section.weights!r} is a run of another architecture ({key}: "
            f"{trained.get(key, 'absent')!r} instead of {section[key]!r}): name its network after teacher="
        )
    return RunTeacher(run)


# Options of a network that do not matter where it is a teacher.
_OF_TRAINING = ("weights", "drop_path", "dropout", "dtype", "remat", "sampling")


def init(module: nn.Module, key: jax.Array) -> Variables:
    """Returns random variables of a detector."""
    return module.init(key, jnp.zeros((1, _SIDE, _SIDE, 3)))


def apply(module: nn.Module, variables: Variables, batch: Batch, key: jax.Array | None = None) -> dict[str, Any]:
    """Returns the outputs of a detector for a batch.

    Args:
      module: the detector.
      variables: of the detector.
      batch: `images`, `sizes` and `extents`.
      key: of dropout and stochastic depth. None, the default: evaluation mode.
    """
    rngs = {} if key is None else {"dropout": key}
    return module.apply(variables, batch["images"], batch["sizes"], batch["extents"], key is not None, rngs=rngs)


def load(file: str, variables: Variables, key: str) -> Variables:
    """Returns the variables of a detector with the weights of a file.

    Args:
      file: of a detector or of a Swin classifier (its backbone), or "random".
      variables: of the detector, or their shapes.
      key: config key of the file, for messages.

    Raises:
      UserError: the file is missing or does not fit.
    """
    if file == "random":
        return variables
    if file == "":
        raise UserError(f"config.{key} is empty: name a file of weights, or set it to 'random'")
    return {**variables, "params": state_dicts.load(weights.find(file, key), variables["params"])}
