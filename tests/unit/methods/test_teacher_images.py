"""Student images in the size and normalization of the teacher's finished run."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from cdl_jax import config as base
from cdl_jax.data.transforms import augment
from cdl_jax.errors import UserError
from cdl_jax.methods.base import StreamInfo
from cdl_jax.methods.shared import finished_run, teachers
from cdl_jax.methods.shared.finished_run import RunTeacher
from tests.support.contexts import context

NONE = {"mean": (), "std": ()}
TEACHER = {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.25, 0.2)}
STUDENT = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 0.5, 0.3)}


def images_of_teacher(images, size, student_augment, teacher_augment):
    """The images that the teacher's method gets."""

    def teacher_outputs(network, variables, images, context, use_batch_statistics):
        return {"logits": images}

    method = SimpleNamespace(image_size=size, teacher_outputs=teacher_outputs)
    config = ConfigDict({"augment": teacher_augment})
    teacher = RunTeacher(
        Path("run"), config, StreamInfo(4, (2, 2)), method, "network", (1,), ConfigDict(student_augment), False
    )
    return teacher.outputs({"frozen": {}, "tasks": {}}, images, context(end=2))["logits"]


def raw_images(side=8):
    return np.random.default_rng(0).integers(0, 256, (3, side, side, 3)).astype(np.uint8)


@pytest.mark.parametrize("options", [NONE, TEACHER], ids=["none", "teacher"])
def test_images_that_fit_are_passed_unchanged(options):
    images = augment.normalize(raw_images(), options)
    assert images_of_teacher(images, 8, options, dict(options)) is images


@pytest.mark.parametrize("student_augment", [NONE, TEACHER, STUDENT], ids=["none", "same", "different"])
@pytest.mark.parametrize("teacher_augment", [NONE, TEACHER], ids=["none", "teacher"])
@pytest.mark.parametrize("size", [8, 24, 5])
def test_images_equal_those_that_the_run_makes_of_the_file(size, student_augment, teacher_augment):
    """Resized by `augment.transform_test`, which another test compares with Pillow."""
    expected = augment.transform_test(raw_images(), {"test": "resize", **teacher_augment}, size)
    result = images_of_teacher(augment.normalize(raw_images(), student_augment), size, student_augment, teacher_augment)
    assert result.shape == (3, size, size, 3) and result.dtype == np.float32
    np.testing.assert_allclose(result, expected, atol=2e-6 / min(teacher_augment["std"] or (1,)))


def test_different_normalization_changes_the_images():
    images = augment.normalize(raw_images(), STUDENT)
    assert np.abs(images_of_teacher(images, 8, STUDENT, TEACHER) - images).max() > 0.5


def test_the_teachers_run_decides_the_image_size(tmp_path, monkeypatch):
    config = base.default("kd", data="glyph_mini", network="resnet20", teacher="resnet20")
    config.teacher.weights = str(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    run_config = ConfigDict({"network": {**config.teacher.to_dict(), "image_size": 48}})
    run = SimpleNamespace(config=run_config, network="network")
    monkeypatch.setattr(finished_run, "find_teacher", lambda *arguments: run)
    assert teachers.build(config, StreamInfo(4, (2, 2)), config.kd) is run
    run_config.network.widths = (8, 16, 24)
    with pytest.raises(UserError, match="of another architecture"):
        teachers.build(config, StreamInfo(4, (2, 2)), config.kd)
    config.update(teacher={"weights": "random", "image_size": 48})
    with pytest.raises(UserError, match="teacher.image_size=48 differs from student.image_size=32: .*or name a run"):
        teachers.build(config, StreamInfo(4, (2, 2)), config.kd)
