"""Arguments of the Python interface: refused in one line before work."""

from pathlib import Path

import pytest

from cdl_jax.errors import UserError
from cdl_jax.run import api

RUN = api.Run(Path("run"), None, {"networks": {"student": {}}, "headline": ["student"]}, 0, {})


@pytest.mark.parametrize("value", [0.0, True, "1"])
@pytest.mark.parametrize("name", ["task", "batch_size"])
def test_task_and_batch_size_are_integers(name, value):
    with pytest.raises(UserError, match=f"{name}={value!r} must be an integer"):
        RUN.network(**{name: value})


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
