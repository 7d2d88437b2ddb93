"""Checkpoints in folders of any name; a first save that is unreadable is refused."""

import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.errors import UserError
from cdl_jax.runtime import checkpoint, sharding
from cdl_jax.runtime.checkpoint import Checkpoints

TREE = {"a": jnp.arange(6, dtype=jnp.float32).reshape(2, 3), "b": jnp.ones(2)}
NAMES = (
    "sweep[lr=0.005]",
    "[!a]*",
    "what?",
    "with space ",
    'it\'s "q"',
    "50%20done",
    "größe→",
    "new\nline",
    "{a,b}",
    "~x",
)


@pytest.mark.parametrize("name", NAMES)
def test_each_kind_of_checkpoint_is_restored_from_a_folder_of_any_name(tmp_path, name):
    folder, shapes = tmp_path / name, sharding.abstract_tree(sharding.make_mesh(1), TREE)
    with Checkpoints(folder) as checkpoints:
        checkpoints.save_frozen(TREE)
        checkpoints.save_task(0, TREE, {"step": 1})
        checkpoints.save_latest(2, TREE, {"step": 2})
    with Checkpoints(folder) as checkpoints:
        assert (checkpoints.finished_tasks(), checkpoints.latest_step()) == ([0], 2)
        record, state, within = checkpoints.restore_newest(shapes, shapes)
        assert (record, within) == ({"step": 2}, True)
        for found in (checkpoints.restore_frozen(shapes), checkpoints.restore_task(0, shapes), state):
            np.testing.assert_array_equal(found["a"], TREE["a"])


def test_a_backslash_is_refused(tmp_path):
    with pytest.raises(UserError, match="TensorStore reads a backslash as a slash"):
        Checkpoints(tmp_path / "a\\b")


@pytest.mark.parametrize("kind", ["frozen", "task", "latest"])
def test_a_first_save_that_cannot_be_read_back_is_refused(tmp_path, monkeypatch, kind):
    monkeypatch.setattr(checkpoint._LocalPath, "glob", lambda *_: iter(()))  # arrays are then never merged
    with Checkpoints(tmp_path) as checkpoints, pytest.raises(UserError, match="cannot be read back") as caught:
        save = {
            "frozen": lambda: checkpoints.save_frozen(TREE),
            "task": lambda: checkpoints.save_task(0, TREE, {}),
            "latest": lambda: checkpoints.save_latest(1, TREE, {}),
        }
        save[kind]()
    assert len(str(caught.value)) < 700 and "\n" not in str(caught.value)
