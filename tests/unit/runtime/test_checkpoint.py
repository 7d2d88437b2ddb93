"""Checkpoints are restored as saved; a corrupt checkpoint is reported in one line."""

import asyncio
import gc
import resource
import shutil
import time

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.errors import UserError
from cdl_jax.runtime import sharding
from cdl_jax.runtime.checkpoint import Checkpoints

FROZEN = {"student": {"backbone": {"kernel": jnp.arange(6, dtype=jnp.float32).reshape(2, 3)}}}
LIVE = {
    "student": {"head": jnp.array([1.5, -2.0])},
    "distill": {},
    "count": jnp.int32(7),
    "large": jax.random.normal(jax.random.key(0), (30, 30)),  # has its own file
}
STATE = {"live": LIVE, "sums": {"steps": jnp.float32(0)}}
RECORD = {"step": 12, "task": 1, "accuracy": {"student": [[90.0], [1 / 3, 0.1]]}, "flops": {"student": None}}


def after(task):
    """Returns the record of a task, with five steps per task."""
    return {**RECORD, "task": task, "step": 5 * (task + 1)}


def shapes(tree):
    return sharding.abstract_tree(sharding.make_mesh(1), tree)


def assert_same(restored, expected):
    assert jax.tree.structure(restored) == jax.tree.structure(expected)
    jax.tree.map(np.testing.assert_array_equal, restored, expected)
    assert [leaf.dtype for leaf in jax.tree.leaves(restored)] == [leaf.dtype for leaf in jax.tree.leaves(expected)]


def refusal(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A run's folder with checkpoints after tasks 0 and 1, and after steps 12 and 15."""
    folder = tmp_path_factory.mktemp("run")
    with Checkpoints(folder) as checkpoints:
        checkpoints.save_frozen(FROZEN)
        for task in (0, 1):
            checkpoints.save_task(task, {**LIVE, "count": jnp.int32(task)}, after(task))
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


def test_all_arrays_and_records_are_restored(saved):
    with Checkpoints(saved) as checkpoints:
        assert (checkpoints.finished_tasks(), checkpoints.latest_step()) == ([0, 1], 15)
        assert_same(checkpoints.restore_frozen(shapes(FROZEN)), FROZEN)
        for task in (0, 1):
            assert checkpoints.task_record(task) == after(task)
            assert_same(checkpoints.restore_task(task, shapes(LIVE)), {**LIVE, "count": jnp.int32(task)})
        record, state, within = checkpoints.restore_newest(shapes(LIVE), shapes(STATE))
        assert (record, within) == ({**RECORD, "step": 15}, True)
        assert_same(state, {"live": LIVE, "sums": {"steps": jnp.float32(15)}})


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def test_frozen_weights_are_saved_once_and_two_latest_checkpoints_are_retained(saved):
    root = saved / "checkpoints"
    assert names(root) == ["frozen", "frozen.json", "latest", "tasks"]
    assert names(root / "latest") == ["12", "15"]
    assert names(root / "tasks") == ["0", "1"]


def test_fewer_checkpoints_are_retained_if_configured(tmp_path):
    with Checkpoints(tmp_path, keep=1, keep_tasks=2) as checkpoints:
        for number in range(4):
            checkpoints.save_task(number, LIVE, RECORD)
            checkpoints.save_latest(number, LIVE, RECORD)
        checkpoints.wait()
    assert names(tmp_path / "checkpoints" / "latest") == ["3"]
    assert names(tmp_path / "checkpoints" / "tasks") == ["2", "3"]


def damages(path):
    """Yields (name of the damage, new content of the file or None for a missing file)."""
    content = path.read_bytes()
    yield "missing", None
    yield "empty", b""
    yield "cut", content[: len(content) // 2]
    for position in {len(content) // 4, len(content) // 2, 3 * len(content) // 4} if content else ():
        yield f"bit {position}", content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


@pytest.mark.parametrize("newest", ["latest/15", "tasks/1"])
def test_a_corrupt_checkpoint_is_replaced_by_the_one_before_or_restored_exactly(newest, saved, tmp_path, caplog):
    """Damages every file in every way.

    Some files, and some bits of other files, have no effect.
    """
    root, replaced = tmp_path / "checkpoints", 0
    shutil.copytree(saved / "checkpoints", root)
    if newest == "tasks/1":
        shutil.rmtree(root / "latest")
    original = tmp_path / "original"
    shutil.copytree(root, original)
    for path in sorted(file for file in (original / newest).rglob("*") if file.is_file()):
        for damage, content in damages(path):
            shutil.rmtree(root)
            shutil.copytree(original, root)
            target = root / path.relative_to(original)
            target.unlink() if content is None else target.write_bytes(content)
            caplog.clear()
            with Checkpoints(tmp_path) as checkpoints:
                record, restored, within = checkpoints.restore_newest(shapes(LIVE), shapes(STATE))
            intact = not (root / "damaged").exists()
            replaced += not intact
            logged = any(entry.name == "cdl_jax" for entry in caplog.records)
            assert logged != intact, f"{target} {damage}"
            if newest == "latest/15":
                step = 15 if intact else 12
                assert (record, within) == ({**RECORD, "step": step}, True)
                assert_same(restored, {"live": LIVE, "sums": {"steps": jnp.float32(step)}})
            else:
                task = 1 if intact else 0
                assert (record, within) == (after(task), False)
                assert_same(restored, {**LIVE, "count": jnp.int32(task)})
            if not intact:
                assert names(root / "damaged") == [newest.replace("/", "-")]
                assert "moved to" in caplog.text and not (root / newest).exists()
    assert replaced > 10


def test_a_full_disk_is_reported_and_earlier_checkpoints_stay_intact(tmp_path):
    large = {"a": np.random.default_rng(0).normal(size=(300, 300)).astype(np.float32)}
    unlimited = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_task(0, LIVE, RECORD)
    saves = {
        "frozen": lambda checkpoints: checkpoints.save_frozen(large),
        "tasks": lambda checkpoints: checkpoints.save_task(1, large, RECORD),
        "latest": lambda checkpoints: (checkpoints.save_latest(9, large, RECORD), checkpoints.wait()),
    }
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, unlimited[1]))
    try:
        for name, save in saves.items():
            with pytest.raises(UserError) as caught, Checkpoints(tmp_path) as checkpoints:
                save(checkpoints)
            message = str(caught.value)
            assert message.startswith(f"checkpoint {tmp_path / 'checkpoints' / name} cannot be written: ")
            assert "File too large" in message and "\n" not in message
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, unlimited)
    with Checkpoints(tmp_path) as checkpoints:
        assert (checkpoints.finished_tasks(), checkpoints.latest_step()) == ([0], None)
        record, live, within = checkpoints.restore_newest(shapes(LIVE), shapes(STATE))
        checkpoints.save_frozen(large)
        assert_same(checkpoints.restore_frozen(shapes(large)), large)
    assert (record, within) == (RECORD, False)
    assert_same(live, LIVE)


def test_the_order_of_checkpoints_does_not_depend_on_the_clock(tmp_path, monkeypatch):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_latest(12, STATE, {**RECORD, "step": 12})
        checkpoints.wait()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 1e6)
    for step in (15, 18):
        with Checkpoints(tmp_path) as checkpoints:
            checkpoints.save_latest(step, STATE, {**RECORD, "step": step})
            checkpoints.wait()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_newest(shapes(LIVE), shapes(STATE))[0]["step"] == 18
    assert names(tmp_path / "checkpoints" / "latest") == ["15", "18"]


def test_if_no_checkpoint_is_intact_none_is_moved(saved, tmp_path):
    shutil.copytree(saved / "checkpoints", tmp_path / "checkpoints")
    for path in (tmp_path / "checkpoints").rglob("record/metadata"):
        path.unlink()
    with Checkpoints(tmp_path) as checkpoints:
        message = refusal(checkpoints.restore_newest, shapes(LIVE), shapes(STATE))
        assert (checkpoints.finished_tasks(), checkpoints.latest_step()) == ([0, 1], 15)
    assert "no other checkpoint in " in message and not (tmp_path / "checkpoints" / "damaged").exists()


def test_changed_frozen_weights_are_refused(saved, tmp_path):
    shutil.copytree(saved / "checkpoints", tmp_path / "checkpoints")
    shutil.rmtree(tmp_path / "checkpoints" / "frozen")
    other = tmp_path / "other"
    with Checkpoints(other) as checkpoints:
        checkpoints.save_frozen(jax.tree.map(lambda x: x + 1, FROZEN))
    (other / "checkpoints" / "frozen").rename(tmp_path / "checkpoints" / "frozen")
    with Checkpoints(tmp_path) as checkpoints:
        assert "the arrays differ from what was saved" in refusal(checkpoints.restore_frozen, shapes(FROZEN))


def test_a_checkpoint_without_a_checksum_is_refused(saved, tmp_path):
    shutil.copytree(saved / "checkpoints", tmp_path / "checkpoints")
    record = tmp_path / "checkpoints" / "latest" / "15" / "record" / "metadata"
    record.write_text(record.read_text().replace('"crc32"', '"crc33"'))
    (tmp_path / "checkpoints" / "frozen.json").unlink()
    with Checkpoints(tmp_path) as checkpoints:
        assert checkpoints.restore_newest(shapes(LIVE), shapes(STATE))[0]["step"] == 12
        assert "frozen.json" in refusal(checkpoints.restore_frozen, shapes(FROZEN))
        assert checkpoints.latest_step() == 12  # what was put aside is forgotten
    assert names(tmp_path / "checkpoints" / "damaged") == ["latest-15"]


def test_frozen_weights_are_not_saved_again_and_an_empty_tree_leaves_no_file(saved, tmp_path):
    with Checkpoints(saved) as checkpoints:
        checkpoints.save_frozen(jax.tree.map(jnp.zeros_like, FROZEN))
        assert_same(checkpoints.restore_frozen(shapes(FROZEN)), FROZEN)
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_frozen({"student": {}})
        assert not (tmp_path / "checkpoints" / "frozen").exists()
        assert checkpoints.restore_frozen({"student": {}}) == {"student": {}}


def test_a_reader_changes_no_file(saved):
    half = saved / "checkpoints" / "tasks" / "2.orbax-checkpoint-tmp"  # another process is writing it
    half.mkdir()
    before = sorted(saved.rglob("*"))
    with Checkpoints(saved, read_only=True) as checkpoints:
        assert checkpoints.finished_tasks() == [0, 1]
        assert_same(checkpoints.restore_task(1, shapes(LIVE)), {**LIVE, "count": jnp.int32(1)})
    assert sorted(saved.rglob("*")) == before
    half.rmdir()


def test_the_message_about_a_missing_task_lists_existing_tasks(saved):
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


def test_damaged_or_missing_frozen_weights_are_refused(saved, tmp_path):
    wrong = {"student": {"backbone": {"kernel": jnp.zeros((2, 4))}}}
    with Checkpoints(saved) as checkpoints:
        assert "cannot be restored: " in refusal(checkpoints.restore_frozen, shapes(wrong))
    shutil.copytree(saved / "checkpoints", tmp_path / "checkpoints")
    shutil.rmtree(tmp_path / "checkpoints" / "frozen")
    with Checkpoints(tmp_path) as checkpoints:
        assert "frozen cannot be restored: " in refusal(checkpoints.restore_frozen, shapes(FROZEN))


def test_the_error_of_a_second_failed_write_is_not_logged(tmp_path, caplog):
    """Orbax writes arrays as asyncio tasks and retrieves only the first error."""
    with Checkpoints(tmp_path):
        pass

    async def write():
        raise OSError("no room")

    async def writes():
        tasks = [asyncio.ensure_future(write()) for _ in range(2)]
        await asyncio.wait(tasks)
        assert isinstance(tasks[0].exception(), OSError)

    asyncio.run(writes())
    gc.collect()
    assert not [record for record in caplog.records if "never retrieved" in record.getMessage()]


@pytest.mark.parametrize(("number", "names"), [({}, "former"), ({"schema": 2}, "present")])
def test_a_state_is_restored_under_the_names_of_its_schema(tmp_path, number, names):
    former, present = {"live": LIVE}, {"mutable": LIVE}
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_latest(12, {"former": former, "present": present}[names], {**RECORD, **number})
    with Checkpoints(tmp_path) as checkpoints:
        record, state, within = checkpoints.restore_newest(shapes(LIVE), shapes(present), {1: shapes(former)})
    assert within and record == {**RECORD, **number}
    assert_same(state, {"former": former, "present": present}[names])


def test_a_checkpoint_of_a_later_version_is_refused_and_stays_in_its_place(tmp_path):
    with Checkpoints(tmp_path) as checkpoints:
        checkpoints.save_task(0, LIVE, {**after(0), "schema": 3})
    with Checkpoints(tmp_path) as checkpoints:
        message = refusal(checkpoints.restore_newest, shapes(LIVE), shapes(STATE))
        assert message.startswith(f"checkpoint {tmp_path}/checkpoints/tasks/0: schema 3 is of another version")
        assert checkpoints.finished_tasks() == [0]
