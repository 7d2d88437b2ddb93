"""Fine-tuning: which leaves of the backbone are trained, and at which rate."""

import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cdl_jax.models.learners import fine_tuning
from tests.support.learner_runs import build, take_steps

PATHS = [
    ("cls_token",),
    ("patch_embed", "bias"),
    ("block_0", "attn", "qkv", "kernel"),
    ("block_0", "mlp", "fc1", "bias"),
    ("norm", "scale"),
]


@pytest.mark.parametrize(
    ("layers", "trained"),
    [("all", PATHS), ("attention", PATHS[2:3]), ("mlp", PATHS[3:4]), ("biases", [PATHS[1], PATHS[3]])],
)
def test_the_selected_layers_are_trained(layers, trained):
    learner = fine_tuning.FineTuning(1.0, layers)
    assert [path for path in PATHS if learner.trains_backbone(path)] == trained


def test_a_step_of_the_backbone_has_its_own_rate():
    changes = {}
    for rate in (1.0, 0.25):
        (before, after), frozen = take_steps(build("fine_tuning", **{"learner.rate": rate}), 1)
        assert not frozen  # the checkpoint of each task has all weights
        old, new = (flatten_dict(tree["student"]) for tree in (before, after))
        changes[rate] = {path: new[path] - old[path] for path in new}
    paths = {path[:2] for path in changes[1.0] if np.abs(changes[1.0][path]).max() > 1e-6}
    assert {
        ("backbone", "block_0"),
        ("backbone", "patch_embed"),
        ("backbone", "cls_token"),
        ("head", "linear"),
    } <= paths
    for path, change in changes[1.0].items():
        scale = 0.25 if path[0] == "backbone" else 1.0
        np.testing.assert_allclose(changes[0.25][path], scale * change, rtol=1e-2, atol=1e-7, err_msg=str(path))
