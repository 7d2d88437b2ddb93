"""What a teacher of another run is given: the student's pictures in the size and the normalisation of its own run."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from cdl_jax import config as base
from cdl_jax.data.transforms import augment
from cdl_jax.errors import UserError
from cdl_jax.methods import kd
from cdl_jax.methods.base import StreamInfo
from cdl_jax.methods.shared import finished_run
from cdl_jax.methods.shared.finished_run import RunTeacher
from tests.support.contexts import context

PLAIN = {"mean": (), "std": ()}
OWN = {"mean": (0.5, 0.4, 0.3), "std": (0.5, 0.25, 0.2)}
OTHER = {"mean": (0.1, 0.2, 0.3), "std": (1.0, 0.5, 0.3)}


def seen(images, size, given, own):
    """The pictures that the teacher's method sees."""
    method = SimpleNamespace(image_size=size, outputs=lambda network, variables, images, context: {"logits": images})
    config = ConfigDict({"augment": own})
    teacher = RunTeacher(Path("run"), config, StreamInfo(4, (2, 2)), method, "network", (1,), ConfigDict(given), False)
    return teacher.outputs({"frozen": {}, "tasks": {}}, images, context(end=2))["logits"]


def pictures(side=8):
    return np.random.default_rng(0).integers(0, 256, (3, side, side, 3)).astype(np.uint8)


@pytest.mark.parametrize("options", [PLAIN, OWN], ids=["plain", "normalised"])
def test_pictures_that_fit_are_given_as_they_are(options):
    images = augment.normalize(pictures(), options)
    assert seen(images, 8, options, dict(options)) is images


@pytest.mark.parametrize("given", [PLAIN, OWN, OTHER], ids=["plain", "own", "other"])
@pytest.mark.parametrize("own", [PLAIN, OWN], ids=["plain", "own"])
@pytest.mark.parametrize("size", [8, 24, 5])
def test_pictures_are_those_that_the_run_would_have_made_of_the_file(size, given, own):
    """Resized as by `augment.transform_test`, which is compared with Pillow elsewhere."""
    wanted = augment.transform_test(pictures(), {"test": "resize", **own}, size)
    found = seen(augment.normalize(pictures(), given), size, given, own)
    assert found.shape == (3, size, size, 3) and found.dtype == np.float32
    np.testing.assert_allclose(found, wanted, atol=2e-6 / min(own["std"] or (1,)))


def test_a_difference_of_normalisation_is_seen():
    images = augment.normalize(pictures(), OTHER)
    assert np.abs(seen(images, 8, OTHER, OWN) - images).max() > 0.5


def test_the_run_that_is_named_decides_the_size_of_what_its_teacher_sees(tmp_path, monkeypatch):
    config = base.default("kd", data="glyph_mini", network="resnet20", teacher="resnet20")
    config.teacher.weights = str(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    own = ConfigDict({"network": {**config.teacher.to_dict(), "image_size": 48}})
    run = SimpleNamespace(config=own, network="network")
    monkeypatch.setattr(finished_run, "find_teacher", lambda *of: run)
    assert kd.teacher_of(config, StreamInfo(4, (2, 2)), config.kd) is run
    own.network.widths = (8, 16, 24)
    with pytest.raises(UserError, match="of another architecture"):
        kd.teacher_of(config, StreamInfo(4, (2, 2)), config.kd)
    config.update(teacher={"weights": "random", "image_size": 48})
    with pytest.raises(UserError, match="teacher.image_size=48 differs from student.image_size=32: .*or name a run"):
        kd.teacher_of(config, StreamInfo(4, (2, 2)), config.kd)
