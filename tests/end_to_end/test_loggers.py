"""A run that is killed and resumed, with all loggers: each has each number once.

Loggers whose packages are missing are left out.
"""

import csv
import importlib.util
import json
import signal
import sys

import pytest

from tests.end_to_end.command import TINY, results, run, run_in_process, signal_at_line, start
from tests.unit.run.test_optional_packages import small_run

INSTALLED = [name for name in ("wandb", "mlflow") if importlib.util.find_spec(name)]
NAMES = ("tensorboard", "csv", *INSTALLED)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """The folder of the finished run."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    command = ("--config", TINY, "--workdir", folder, "--config.data.num_tasks=2", "--config.checkpoint.every_steps=4",
               f"--config.log.to={NAMES!r}")  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME", "WANDB_DIR"):
            patch.delenv(name, raising=False)
        process = start(*command)
        lines = 30  # the first task has ended, and the last checkpoint is of some steps before
        signal_at_line(process, folder, lines, signal.SIGKILL)
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        run_in_process(*command)
    return folder


@pytest.fixture(scope="module")
def rows(workdir):
    """The rows of metrics.csv."""
    with (workdir / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def values_after(rows, task):
    """The numbers of the line after a task by name."""
    found = [row for row in rows if row["task"] == str(task) and not row["phase"]]
    values = {row["metric"]: float(row["value"]) for row in found}
    assert len(values) == len(found)
    return values


def test_the_lines_of_metrics_jsonl_are_copied_once(workdir, rows):
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]
    expected = [
        (line["step"], f"{line['phase']}/{name}", value)
        for line in lines if "phase" in line
        for name, value in line.items() if name not in ("step", "task", "phase", "epoch")
    ]  # fmt: skip
    assert [(int(row["step"]), row["metric"], float(row["value"])) for row in rows if row["phase"]] == expected
    assert len(expected) > 50


@pytest.mark.parametrize("task", [0, 1])
def test_each_task_has_its_row_forgetting_and_cost(workdir, rows, task):
    values, networks = values_after(rows, task), results(workdir)["networks"]
    for name, network in networks.items():
        row = network["accuracy_matrix"][task]
        assert [values[f"{name}/accuracy/task_{j}"] for j in range(task + 1)] == row
        assert f"{name}/accuracy/task_{task + 1}" not in values
        assert values[f"{name}/last"] == pytest.approx(sum(row) / len(row))
    if task == 1:
        first, second = (networks["student"]["accuracy_matrix"][i][0] for i in (0, 1))
        assert values["student/forgetting_max"] == pytest.approx(first - second)
        of_images = ("stream", "forward", "ece", "task_incremental")  # in results.json alone
        defined = {k: v for k, v in networks["student"]["metrics"].items() if v is not None}
        final = {key: values[f"student/{key}"] for key in defined if not key.startswith(of_images)}
        assert final == {key: defined[key] for key in final} and len(final) > 5
    assert values["cost/seconds/student"] > 0 and values["cost/peak_memory_bytes"] > 1e6


def test_seconds_grow_from_task_to_task(rows):
    assert values_after(rows, 1)["cost/seconds/evaluation"] > values_after(rows, 0)["cost/seconds/evaluation"] > 0


def test_tensorboard_names_the_run_by_its_folder_and_has_each_number_once(workdir, rows):
    from tensorboard.backend.event_processing.event_multiplexer import EventMultiplexer

    events = EventMultiplexer(size_guidance={"tensors": 0}).AddRunsFromDirectory(str(workdir.parent)).Reload()
    assert [*events.Runs()] == ["tiny"]
    steps = {tag: [event.step for event in events.Tensors("tiny", tag)] for tag in events.Runs()["tiny"]["tensors"]}
    expected = {}
    for row in rows:
        expected.setdefault(row["metric"], []).append(int(row["step"]))
    assert steps.pop("_hparams_/session_start_info") == [0]
    assert steps == expected


@pytest.mark.skipif("mlflow" not in INSTALLED, reason="mlflow is not installed")
def test_mlflow_has_one_run_with_the_final_numbers(workdir, rows):
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{workdir.parent / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("cdl_jax").experiment_id])
    final = {row["metric"]: float(row["value"]) for row in rows}
    assert run.data.metrics == final and run.info.status == "FINISHED" and run.info.run_name == "tiny"
    assert len(client.get_metric_history(run.info.run_id, "student/last")) == 2
    assert run.data.params["optim.learning_rate"] == "0.005"


@pytest.mark.skipif("wandb" not in INSTALLED, reason="wandb is not installed")
def test_wandb_has_one_offline_run(workdir):
    assert len([*(workdir / "wandb").glob("offline-run-*/*.wandb")]) == 1


def test_a_tool_that_fails_ends_no_run(tmp_path):
    (tmp_path / "run" / "metrics.csv").mkdir(parents=True)  # so the file cannot be written
    _, err = run(*small_run(tmp_path / "run"), "--config.log.to=('csv','tensorboard')")
    (line,) = [line for line in err.splitlines() if "logger" in line]
    assert "the logger csv has stopped (IsADirectoryError: " in line
    assert results(tmp_path / "run")["status"] == "finished"
    assert len([*(tmp_path / "run").glob("events.out.tfevents.*")]) == 1


def test_an_absent_package_is_one_line_before_the_run(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "wandb", None)
    _, err = run_in_process(*small_run(tmp_path / "run"), "--config.log.to=('wandb',)", expect=2)
    assert "the package wandb is not installed: pip install '.[wandb]', or leave 'wandb' out" in err
    assert not (tmp_path / "run").exists()
