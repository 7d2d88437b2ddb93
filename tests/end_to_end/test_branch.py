"""Branches of a run: unchanged, with other options or further tasks, and killed.

A branch without a change equals its parent.
"""

import json
import shutil
import signal

import numpy as np
import pytest
from PIL import Image

from tests.end_to_end.command import TINY, last_weights, matrices, results, run_in_process, start

COMMAND = ("--config", TINY, "--config.train.epochs=1")
NEW_CLASSES, PER_CLASS = ("disk", "frame"), 24


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("runs") / "parent"
    run_in_process(*COMMAND, "--workdir", workdir)
    return workdir


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder of two further classes."""
    root, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for label, name in enumerate(NEW_CLASSES):
        (root / name).mkdir()
        for number in range(PER_CLASS):
            pixels = rng.integers(0, 60, (20, 24, 3)).astype(np.uint8)
            pixels[4 * label : 12, 6:18] += 150
            Image.fromarray(pixels).save(root / name / f"{number}.png")
    return root


def content_of(workdir):
    """Returns the bytes of all files of a run, by path."""
    return {path.relative_to(workdir): path.read_bytes() for path in workdir.rglob("*") if path.is_file()}


def test_without_a_change_a_branch_repeats_the_later_tasks(parent, tmp_path):
    before = content_of(parent)
    run_in_process("--from", parent, "--task=2", "--workdir", tmp_path / "branch")
    assert content_of(parent) == before
    assert matrices(tmp_path / "branch") == matrices(parent)
    assert (tmp_path / "branch" / "metrics.jsonl").read_bytes() == (parent / "metrics.jsonl").read_bytes()
    for task in (1, 4):
        ours, theirs = last_weights(tmp_path / "branch", task), last_weights(parent, task)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[name], theirs[name]) for name in ours)
    recorded = results(tmp_path / "branch")["parent"]
    assert (recorded["path"], recorded["task"], recorded["changes"]) == (str(parent), 2, {})
    assert json.loads((tmp_path / "branch" / "config.json").read_text())["parent"] == recorded
    assert results(parent)["parent"] is None


def test_a_branch_with_another_option_keeps_the_rows_until_its_task_and_resumes_with_the_same_bits(parent, tmp_path):
    command = ("--from", parent, "--task=1", "--config.optim.learning_rate=0.02", "--workdir")
    run_in_process(*command, tmp_path / "complete")
    ours, theirs = matrices(tmp_path / "complete")["student"], matrices(parent)["student"]
    assert ours[:2] == theirs[:2] and ours[2:] != theirs[2:]
    changes = results(tmp_path / "complete")["parent"]["changes"]
    assert changes == {"optim.learning_rate": [0.005, 0.02]}
    killed = tmp_path / "killed"
    process = start(*command, killed)
    while process.poll() is None and not (killed / "checkpoints" / "tasks" / "2").exists():
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    run_in_process("--workdir", killed)  # the branch is a run by itself
    assert matrices(killed) == matrices(tmp_path / "complete")
    _, err = run_in_process("--from", parent, "--task=2", *command[3:], killed, expect=2)
    assert "holds a branch of another checkpoint" in err


def test_a_process_that_is_killed_before_the_checkpoints_are_there_starts_again(parent, tmp_path):
    command = ("--from", parent, "--task=3", "--workdir", tmp_path)
    run_in_process(*command)
    wanted = matrices(tmp_path)
    shutil.rmtree(tmp_path / "checkpoints")
    (tmp_path / "results.json").unlink()
    (tmp_path / ".branch").mkdir()
    assert f"--from={parent} --task=3" in run_in_process("--workdir", tmp_path, expect=2)[1]
    run_in_process(*command)
    assert matrices(tmp_path) == wanted == matrices(parent)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--task=9",), "no checkpoint after task 9"),
        (("--task=4",), "task 4 is the last of the stream"),
        (("--task=1", "--config.student.depth=3"), "config.student.depth: 2 -> 3: a branch keeps this option"),
        (("--task=1", "--config.data.class_order=python_shuffle"), "the classes or images of task 0 differ"),
        (("--task=1", "--config.data.max_train_per_class=15"), "the classes or images of task 0 differ"),
        (("--task=1", "--config.learner.pool=8"), "config.learner.pool may have changed it"),
        (("--mode=continue",), "add tasks by --mode=continue --tasks FOLDER"),
        (("--mode=continue", "--task=1"), "--task=1 needs --mode=train or --mode=describe"),
        (("--tasks", "photos"), "--tasks needs --mode=continue"),
    ],
)
def test_a_branch_is_refused_in_one_line_before_work(parent, tmp_path, words, message):
    _, err = run_in_process("--from", parent, *words, "--workdir", tmp_path / "branch", expect=2)
    assert message in err and err.count("\n") == 1
    assert not (tmp_path / "branch").exists()


def test_a_finished_run_learns_the_classes_of_a_folder(parent, folder, tmp_path):
    grown = tmp_path / "grown"
    run_in_process(
        "--mode=continue", "--from", parent, "--tasks", folder, "--config.train.epochs=15", "--workdir", grown
    )
    content = results(grown)
    assert content["stream"]["tasks"][-1]["classes"] == list(NEW_CLASSES)
    assert content["stream"]["tasks"][:-1] == results(parent)["stream"]["tasks"]
    for network, rows in matrices(parent).items():
        assert matrices(grown)[network][:5] == rows and len(matrices(grown)[network][5]) == 6
    # Random backbones: only with the task given the two classes of different height are known.
    assert content["networks"]["teacher"]["task_incremental_matrix"][5][5] > 80
    ours, theirs = last_weights(grown, 4), last_weights(parent, 4)
    for name, old in theirs.items():
        assert np.array_equal(ours[name][tuple(slice(n) for n in old.shape)], old), name
    assert sum(ours[name].shape != theirs[name].shape for name in theirs) >= 4  # kernels and biases of both heads
    assert content["networks"]["student"]["metrics"]["forward_transfer"] is None  # the start of later tasks is unknown


def test_the_rest_of_a_stream_that_was_limited(parent, tmp_path):
    run_in_process(*COMMAND, "--config.data.max_tasks=4", "--workdir", tmp_path / "limited")
    assert results(tmp_path / "limited")["stream"]["num_tasks"] == 4
    complete = tmp_path / "complete"
    run_in_process(
        "--mode=continue", "--from", tmp_path / "limited", "--config.data.max_tasks=0", "--workdir", complete
    )
    assert [len(row) for row in matrices(complete)["student"]] == [1, 2, 3, 4, 5]
    assert matrices(complete)["student"][:4] == matrices(tmp_path / "limited")["student"]
