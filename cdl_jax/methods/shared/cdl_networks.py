"""Builds the networks and the distillation scheme of the method `cdl`.

Both are built from a config, whose options are checked.
"""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax import plugins
from cdl_jax.distill.base import NetworkSpec
from cdl_jax.errors import UserError
from cdl_jax.losses import Context
from cdl_jax.methods.base import StreamInfo
from cdl_jax.methods.shared import finished_run, user_scheme
from cdl_jax.methods.shared.teacher_student import TeacherStudent
from cdl_jax.models.modules import prompted


def build(config: ConfigDict, info: StreamInfo) -> TeacherStudent:
    """Builds the networks and the scheme.

    Reads the sections `teacher`, `student`, `learner`, `distill` and `cdl`.

    Raises:
      UserError: options do not fit together.
    """
    check(config)
    options, query_dim = config.cdl, config.student.dim
    student = _build_network(config, config.student, query_dim, info)
    run_teachers = tuple(
        finished_run.find_teacher(folder, options.teacher_network, options.teacher_checkpoint, info, config.augment)
        for folder in options.teacher_runs
    )
    student_spec = _network_spec(config, config.student, student, info)
    if run_teachers:
        teacher_spec = _run_teachers_spec(config, run_teachers, student, info)
    else:
        teacher_spec = _network_spec(config, config.teacher, student, info)
    scheme_module = plugins.load_plugin("distill", config.distill.name)
    scheme = scheme_module.build(config.distill, teacher_spec, student_spec)
    if "." in config.distill.name:  # a user's file
        user_scheme.check_fields(scheme, scheme_module)
    teacher = None
    if run_teachers:
        _check_outputs(run_teachers, teacher_spec.outputs, scheme, config.distill.name)
    elif scheme.needs:
        teacher_query_dim = query_dim if options.teacher_query == "student" else config.teacher.dim
        teacher = _build_network(config, config.teacher, teacher_query_dim, info)
    student.learner.check_epochs(config.train.epochs, info.num_tasks)
    if teacher is not None:
        teacher.learner.check_epochs(options.teacher_epochs or config.train.epochs, info.num_tasks)
    _check_fitted_head(config, student, scheme)
    _check_distillation_trains(config, student, scheme)
    run_teachers = run_teachers if scheme.needs else ()
    return TeacherStudent(
        teacher, run_teachers, student, scheme, own_query=teacher is not None and options.teacher_query == "teacher"
    )


def check(config: ConfigDict) -> None:
    """Checks the options of the section `cdl`.

    Raises:
      UserError: options do not fit together.
    """
    options, epochs = config.cdl, config.train.epochs
    if config.teacher.image_size != config.student.image_size and not options.teacher_runs:
        raise UserError(
            f"teacher.image_size={config.teacher.image_size} and student.image_size={config.student.image_size} "
            "differ: both networks get the same images, set them equal"
        )
    if options.schedule == "interleaved" and options.teacher_epochs:
        raise UserError("cdl.teacher_epochs has no meaning with cdl.schedule='interleaved': leave it at 0")
    if options.schedule == "interleaved_epochs" and options.teacher_epochs % epochs:
        raise UserError(
            f"cdl.teacher_epochs={options.teacher_epochs} must be a multiple of train.epochs={epochs}: with "
            "cdl.schedule='interleaved_epochs' an equal share of them comes before each epoch of the student"
        )
    if options.teacher_runs and options.schedule != "teacher_first":
        raise UserError(
            f"cdl.schedule={options.schedule!r} has no meaning with cdl.teacher_runs, which are not trained: leave it "
            "at 'teacher_first'"
        )


def _build_network(config, section, query_dim, info):
    """Builds the network of a section; its queries are `[batch, query_dim]`."""
    sizes = {"num_classes": info.num_classes, "num_tasks": info.num_tasks}
    return prompted.build(section, config.learner, query_dim=query_dim, **sizes)


def _check_fitted_head(config, network, scheme):
    """Refuses options that a head fitted after the last epoch cannot have.

    They are a second head, a past, and a student that is trained before the teacher's last epoch.
    """
    if network.is_fitted and scheme.keeps_past:
        raise UserError(
            f"distill.name={config.distill.name!r} distills the student's earlier outputs while it trains, but "
            f"learner.name={config.learner.name!r} fits its head in closed form later: choose a scheme without a past, "
            "such as kd"
        )
    if network.is_fitted and scheme.second_head is not None:
        raise UserError(
            f"distill.name={config.distill.name!r} trains a second head, but learner.name={config.learner.name!r} fits "
            "its head in closed form: choose a scheme without a second head, such as kd"
        )
    if network.is_fitted and config.cdl.schedule != "teacher_first":
        raise UserError(
            f"cdl.schedule={config.cdl.schedule!r}: the learner fits its head after its last epoch, so the student "
            "would learn from an earlier head: use 'teacher_first'"
        )


def _check_distillation_trains(config, student, scheme):
    """Refuses a scheme whose loss has no gradient.

    The learner then trains in no task, or has nothing to train. Warns of a scheme that compares features which no task
    changes.
    """
    learner, name = config.learner.name, config.distill.name
    if name == "none":
        return
    compares_features = not scheme.changes_prediction and not {"logits"}.issuperset(scheme.needs)
    compares_features &= config.distill.get("student_feature") != "logits"
    is_traced = "." in learner or compares_features
    trained = student.trained_parts(config.student.dim) if is_traced else {"head"}
    reason = ""
    if student.learner.trained_tasks == "none":
        reason = "trains in no task (trained_tasks='none')"
    elif not trained and not scheme.changes_prediction:
        reason = "has no parameters to train"
    if reason:
        raise UserError(
            f"distill.name={name!r} has no effect, because learner.name={learner!r} {reason}: choose distill=none, or "
            "a learner that trains by gradients"
        )
    if compares_features and trained == {"head"}:
        logging.getLogger("cdl_jax").warning(
            "learner.name=%r trains the head alone: only the terms of logits in distill.name=%r change the student",
            learner,
            name,
        )


def _network_spec(config, section, student, info):
    """Describes the ViT of a section to the scheme; its head is of the student's kind."""
    return NetworkSpec(
        dim=section.dim,
        depth=section.depth,
        tokens=1 + (section.image_size // section.patch_size) ** 2,
        num_classes=info.num_classes,
        num_tasks=info.num_tasks,
        head=student.head,
        learner=config.learner,
        task_sizes=info.task_sizes,
    )


def _run_teachers_spec(config, run_teachers, student, info):
    """Describes the first teacher of a finished run; a CNN has no tokens."""
    first = run_teachers[0]
    section = first.config.get(first.network, {})
    if "patch_size" in section:
        spec = _network_spec(config, section, student, info)
    else:
        spec = replace(_network_spec(config, config.teacher, student, info), dim=0, depth=0, tokens=0)
    return replace(spec, outputs=_output_shapes(run_teachers, config.student.image_size))


def _output_shapes(run_teachers: Sequence[finished_run.RunTeacher], image_size: int) -> Mapping[str, tuple[int, ...]]:
    """Returns the shapes of the averaged outputs for two images; () for non-arrays."""

    def outputs():
        images = jnp.zeros((2, image_size, image_size, 3))
        return finished_run.average_outputs(
            [teacher.outputs(teacher.init(), images, Context.dummy()) for teacher in run_teachers]
        )

    return {name: _shape(value) for name, value in jax.eval_shape(outputs).items()}


def _shape(value: Any) -> tuple[int, ...]:
    return value.shape if isinstance(value, jax.ShapeDtypeStruct) else ()


def _check_outputs(run_teachers, shapes, scheme, name):
    """Refuses teachers of finished runs that lack an output of the scheme."""
    missing = [output for output in scheme.needs if output not in shapes]
    if missing:
        folders = " and ".join(str(teacher.folder) for teacher in run_teachers)
        raise UserError(
            f"distill.name={name!r} reads {missing[0]!r} of its teacher, which {folders} do not output in one shape: "
            "choose a scheme that reads logits"
        )
