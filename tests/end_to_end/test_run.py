"""The main job through the command line: train, repeat, evaluate a checkpoint, refuse another config, describe."""

import json

import pytest

from tests.end_to_end.command import TINY, matrices, results, run, run_in_process

COMMAND = ("--config", TINY, "--config.log.report=True", "--workdir")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """(workdir, what the command printed) of a finished run in a process of its own."""
    workdir = tmp_path_factory.mktemp("run")
    out, _ = run(*COMMAND, workdir)
    return workdir, out


def test_a_run_leaves_matrices_metrics_report_and_events(finished):
    workdir, out = finished
    content = results(workdir)
    assert content["status"] == "finished"
    for network in ("teacher", "student"):
        rows = content["networks"][network]["accuracy_matrix"]
        assert [len(row) for row in rows] == [1, 2, 3, 4, 5]
        assert all(0 <= value <= 100 for row in rows for value in row)
        assert content["networks"][network]["metrics"]["last"] == pytest.approx(sum(rows[-1]) / 5)
        chosen = content["networks"][network]["selection"]["layer_0"]
        assert [sum(row) for row in chosen] == [2 * task["test"] for task in content["stream"]["tasks"]]  # top_k = 2
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    assert max(line["step"] for line in lines) == 5 * 2 * 2 * 4  # tasks, networks, epochs, batches
    assert all(line["loss"] > 0 for line in lines if "loss" in line)
    assert "<html" in (workdir / "report.html").read_text()
    assert list((workdir / "tensorboard").rglob("events.out.tfevents.*"))
    assert "student" in out and str(workdir / "report.html") in out
    assert content["cost"]["parameters"]["student"] == {
        "trainable": 6 * 4 * 16 + 6 * 16 + 16 * 20 + 20,
        "frozen": 18992,
    }


def test_the_same_command_again_prints_the_results_and_trains_nothing(finished):
    workdir, out = finished
    before = (workdir / "metrics.jsonl").read_bytes()
    again, _ = run_in_process(*COMMAND, workdir)
    assert again == out
    assert (workdir / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize("task", [None, 1])
def test_evaluation_of_a_checkpoint_repeats_its_row(finished, task):
    workdir, _ = finished
    flags = [] if task is None else ["--task", task]
    out, _ = run_in_process("--config", TINY, "--workdir", workdir, "--mode", "eval", *flags)
    row = matrices(workdir)["student"][-1 if task is None else task]
    assert f"student after task {len(row) - 1}: " + " ".join(f"{value:.2f}" for value in row) in out
    assert "equal to the run's accuracy matrix" in out and "NOT" not in out


def test_a_workdir_of_another_config_is_refused_with_the_difference(finished):
    workdir, _ = finished
    before = {path: path.read_bytes() for path in workdir.rglob("*.json*")}
    _, err = run_in_process("--config", TINY, "--workdir", workdir, "--config.learner.top_k=3", expect=2)
    assert "learner.top_k: 2 -> 3" in err and len(err.splitlines()) == 1
    assert before == {path: path.read_bytes() for path in workdir.rglob("*.json*")}


def test_describe_trains_nothing_and_counts_parameters(tmp_path):
    out, _ = run_in_process("--config", TINY, "--mode", "describe")
    assert "glyph_mini_incremental: 20 classes in 5 tasks" in out
    assert "student: 820 trainable, 18,992 frozen" in out
    assert "GFLOP" in out and "train.batch_size" not in out
    out, _ = run_in_process("--config", TINY, "--mode", "describe", "--show_config")
    assert out.index("GFLOP") < out.index("train.batch_size = 16")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("data", ["cifar100", "imagenet_r"])
def test_a_published_config_is_described_without_its_data(data, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("CDL_DATA", "")
    small = [f"--config.{network}.depth=1" for network in ("teacher", "student")]
    config = f"configs/cdl.py:data={data}"
    out, _ = run_in_process("--config", config, "--mode", "describe", *small)
    assert "the data is not here" in out and f"python -m cdl_jax.fetch {data}" in out
    assert "task 9: " in out and "teacher: " in out and "GFLOP" in out
