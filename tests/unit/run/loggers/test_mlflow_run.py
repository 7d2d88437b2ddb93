"""Runs in an SQLite store of MLflow, read by its client. Needs the extra `mlflow`."""

import json
import math

import pytest

from cdl_jax.run.loggers import mlflow_run
from tests.support.logger_lines import LINES, POINTS, log_killed_and_resumed, run_info

pytest.importorskip("mlflow")
pytest.importorskip("sqlalchemy")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "a").mkdir()
    return tmp_path / "a"


def client_of(folder):
    from mlflow.tracking import MlflowClient

    return MlflowClient(f"sqlite:///{folder.parent / 'mlflow.db'}")


def only_run(folder):
    client = client_of(folder)
    (run,) = client.search_runs([client.get_experiment_by_name("cdl_jax").experiment_id])
    return client, run


def test_a_resumed_run_is_one_run_with_each_number_once(folder):
    log_killed_and_resumed(mlflow_run, folder)
    client, run = only_run(folder)
    history = {name: client.get_metric_history(run.info.run_id, name) for name in run.data.metrics}
    assert {name: [(point.step, point.value) for point in points] for name, points in history.items()} == POINTS
    assert run.data.metrics["student/accuracy"] == 70.0  # the final value
    assert (run.info.run_name, run.info.status) == ("a", "FINISHED")
    assert run.data.params == {
        "method": "cdl", "seed": "3", "optim.learning_rate": "0.5", "optim.betas": "[0.9, 0.99]", "log.report": "True"
    }  # fmt: skip


def test_a_run_that_its_store_no_longer_has_begins_anew(folder):
    mlflow_run.open(run_info(folder), LINES[:2]).close(False)
    client, run = only_run(folder)
    assert run.info.status == "KILLED"
    (folder / "mlflow_run.json").write_text(json.dumps({"run_id": "0" * 32}))
    mlflow_run.open(run_info(folder), LINES[:1]).close(True)
    experiment = client.get_experiment_by_name("cdl_jax").experiment_id
    assert [len(run.data.metrics) for run in client.search_runs([experiment])] == [1, 2]  # the newest first


def test_numbers_that_are_not_finite_and_names_with_other_characters(folder):
    logger = mlflow_run.open(run_info(folder), [])
    logger.write({"step": 1, "task": 0, "phase": "student", "epoch": 0, "loss[kd]": math.nan, "grad": math.inf})
    logger.close(True)
    _, run = only_run(folder)
    assert math.isnan(run.data.metrics["student/loss_kd_"]) and run.data.metrics["student/grad"] > 1e300
