"""Arguments of the Python interface: refused in one line before work."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from cdl_jax.errors import UserError
from cdl_jax.run import api

RUN = api.Run(Path("run"), None, {"networks": {"student": {}}, "headline": ["student"]}, 0, {})


@pytest.mark.parametrize("value", [0.0, True, "1"])
@pytest.mark.parametrize("name", ["task", "batch_size"])
def test_task_and_batch_size_are_integers(name, value):
    with pytest.raises(UserError, match=f"{name}={value!r} must be an integer"):
        RUN.network(**{name: value})


def test_matrices_of_task_identity_and_of_confusion_are_arrays():
    of_student = {"task_incremental_matrix": [[90.0]], "confusion": [{"0": 3, "2": 1}, {"1": 4}]}
    networks = {"student": of_student, "of an earlier version": {}, "detector": dict.fromkeys(of_student)}
    tasks = [
        {"classes": ["a", "b"], "first": 0, "train": 2, "test": 2},
        {"classes": ["c"], "first": 2, "train": 1, "test": 1},
    ]
    config = SimpleNamespace(method="cdl")
    run = api.Run(Path("run"), config, {"networks": networks, "stream": {"tasks": tasks}}, 0, {})
    assert list(run.task_incremental_matrices) == list(run.confusion_matrices) == ["student"]
    np.testing.assert_array_equal(run.task_incremental_matrices["student"], [[90.0, np.nan], [np.nan, np.nan]])
    np.testing.assert_array_equal(run.confusion_matrices["student"], [[3, 0, 1], [0, 4, 0]])


def test_a_network_that_is_no_text_is_unknown():
    with pytest.raises(UserError, match="no network 3"):
        RUN.network(3)


@pytest.mark.parametrize("threshold", [50, -0.1, float("nan"), "0.5"])
def test_the_threshold_of_a_detector_is_a_score(threshold):
    with pytest.raises(UserError, match="threshold=.* must be a score from 0 to 1"):
        api.DetectionNetwork("student", 0, (), None)(["a.png"], threshold=threshold)


@pytest.mark.parametrize("images", [3, None, b"a.png"])
def test_images_are_a_path_an_array_or_a_list(images):
    with pytest.raises(UserError, match="images are of type"):
        api.as_images(images)
