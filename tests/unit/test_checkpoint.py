"""Checkpoints come back as they were saved; what cannot be restored is told in one line."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax import sharding
from cdl_jax.checkpoint import Checkpoints
from cdl_jax.errors import UserError

FROZEN = {"student": {"backbone": {"kernel": jnp.arange(6, dtype=jnp.float32).reshape(2, 3)}}}
LIVE = {"student": {"head": jnp.array([1.5, -2.0])}, "distill": {}, "count": jnp.int32(7)}
RECORD = {"step": 12, "task": 1, "accuracy": {"student": [[90.0], [1 / 3, 0.1]]}, "flops": {"student": None}}


def shapes(tree):
    return sharding.abstract(sharding.make_mesh(1), tree)


def assert_same(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert [leaf.dtype for leaf in jax.tree.leaves(found)] == [leaf.dtype for leaf in jax.tree.leaves(expected)]


def refusal(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The directory of a run with checkpoints after tasks 0 and 1, and after steps 12 and 15."""
    folder = tmp_path_factory.mktemp("run")
    with Checkpoints(folder) as checkpoints:
        checkpoints.save_frozen(FROZEN)
        for task in (0, 1):
            checkpoints.save_task(task, {**LIVE, "count": jnp.int32(task)}, {**RECORD, "task": task})
        for step in (12, 15):
            checkpoints.save_latest(
                step, {"live": LIVE, "sums": {"steps": jnp.float32(step)}}, {**RECORD, "step": step}
            )
        checkpoints.wait()
    return folder


def test_an_empty_directory_has_no_checkpoints(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.finished_tasks(), checkpoints.latest_step()) == ([], None)
        message = refusal(checkpoints.task_record, 0)
    assert message.startswith("no checkpoint after task 0 in ") and message.endswith("(there are: none)")


def test_everything_comes_back(saved):
    with Checkpoints(saved) as checkpoints:
        assert (checkpoints.finished_tasks(), checkpoints.latest_step()) == ([0, 1], 15)
        assert_same(checkpoints.restore_frozen(shapes(FROZEN)), FROZEN)
        for task in (0, 1):
            assert checkpoints.task_record(task) == {**RECORD, "task": task}
            assert_same(checkpoints.restore_task(task, shapes(LIVE)), {**LIVE, "count": jnp.int32(task)})
        state = {"live": LIVE, "sums": {"steps": jnp.float32(15)}}
        assert checkpoints.latest_record() == {**RECORD, "step": 15}
        assert_same(checkpoints.restore_latest(shapes(state)), state)


def test_frozen_weights_lie_there_once_and_latest_keeps_one(saved):
    root = saved / "checkpoints"
    assert sorted(path.name for path in root.iterdir()) == ["frozen", "latest", "tasks"]
    assert [path.name for path in (root / "latest").iterdir()] == ["15"]
    assert sorted(path.name for path in (root / "tasks").iterdir()) == ["0", "1"]


def test_frozen_weights_are_not_written_again_and_none_leave_no_trace(saved, tmp_path):
    with Checkpoints(saved) as checkpoints:
        checkpoints.save_frozen(jax.tree.map(jnp.zeros_like, FROZEN))
        assert_same(checkpoints.restore_frozen(shapes(FROZEN)), FROZEN)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_frozen({"student": {}})
        assert not (tmp_path / "checkpoints" / "frozen").exists()
        assert checkpoints.restore_frozen({"student": {}}) == {"student": {}}


def test_a_reader_changes_nothing(saved):
    half = saved / "checkpoints" / "tasks" / "2.orbax-checkpoint-tmp"  # another process is writing it
    half.mkdir()
    before = sorted(saved.rglob("*"))
    with Checkpoints(saved, read_only=True) as checkpoints:
        assert checkpoints.finished_tasks() == [0, 1]
        assert_same(checkpoints.restore_task(1, shapes(LIVE)), {**LIVE, "count": jnp.int32(1)})
    assert sorted(saved.rglob("*")) == before
    half.rmdir()


def test_a_missing_task_names_those_that_exist(saved):
    with Checkpoints(saved) as checkpoints:
        assert refusal(checkpoints.task_record, 5).endswith("(there are: 0, 1)")


@pytest.mark.parametrize(
    "wrong",
    [{**LIVE, "student": {"head": jnp.zeros(3)}}, {**LIVE, "more": jnp.zeros(2)}],
    ids=["another shape", "another leaf"],
)
def test_another_tree_is_refused(saved, wrong):
    with Checkpoints(saved) as checkpoints:
        message = refusal(checkpoints.restore_task, 1, shapes(wrong))
    assert message.startswith(f"checkpoint {saved / 'checkpoints' / 'tasks' / '1'} cannot be restored: ")
    assert len(message) < 600


def test_damaged_or_absent_frozen_weights_are_refused(saved, tmp_path):
    wrong = {"student": {"backbone": {"kernel": jnp.zeros((2, 4))}}}
    with Checkpoints(saved) as checkpoints:
        assert "cannot be restored: " in refusal(checkpoints.restore_frozen, shapes(wrong))
    shutil.copytree(saved / "checkpoints", tmp_path / "checkpoints")
    shutil.rmtree(tmp_path / "checkpoints" / "frozen")
    with Checkpoints(tmp_path) as checkpoints:
        assert "frozen cannot be restored: " in refusal(checkpoints.restore_frozen, shapes(FROZEN))
