"""Copies measurements into a run of MLflow.

The store is that of `MLFLOW_TRACKING_URI`, by default `mlflow.db` beside the working directory. The experiment is
`MLFLOW_EXPERIMENT_NAME`, by default `cdl_jax`. Hyperparameters are params. All numbers are metrics, whose last value is
the final one.
"""

import fcntl
import json
import logging
import os
import re
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path

from cdl_jax.run.loggers.base import Line, RunInfo, scalars
from cdl_jax.runtime import files

ID_FILE = "mlflow_run.json"
_BATCH = 100  # params in one call, the limit of MLflow's API
_PARAM_LENGTH = 6000  # characters of a param's value, the limit of MLflow's API


def open(info: RunInfo, lines: Sequence[Line]) -> "MlflowLogger":
    """Starts or resumes the run, and adds the lines that it lacks."""
    logging.getLogger("mlflow").setLevel(logging.WARNING)  # a new database logs each of its tables
    logging.getLogger("alembic").setLevel(logging.WARNING)
    from mlflow.tracking import MlflowClient

    default = f"sqlite:///{info.workdir.parent / 'mlflow.db'}"
    uri, name = os.environ.get("MLFLOW_TRACKING_URI", default), os.environ.get("MLFLOW_EXPERIMENT_NAME", "cdl_jax")
    # Runs that start together create one database.
    with _locked(info.workdir.parent / ".mlflow.lock") if uri == default else nullcontext():
        client = MlflowClient(uri)
        experiment = client.get_experiment_by_name(name)
        experiment_id = experiment.experiment_id if experiment else client.create_experiment(name)
    run_id = _resume(client, info.folder) or _start(client, experiment_id, info)
    logger = MlflowLogger(client, run_id, _stored_points(client, run_id))
    for line in lines:
        logger.write(line)
    return logger


class MlflowLogger:
    """Adds the numbers of lines to the metrics of a run."""

    def __init__(self, client, run_id: str, stored_counts: Counter):
        """Takes a client of MLflow.

        Args:
          client: of the store.
          run_id: of the run.
          stored_counts: (metric, step) -> number of values that the run already has, which are not added again.
        """
        self._client, self._run_id, self._stored_counts = client, run_id, stored_counts

    def write(self, line: Line) -> None:
        """Adds the numbers of a line that the run lacks."""
        from mlflow.entities import Metric

        now, metrics = int(1000 * time.time()), []
        for name, value in scalars(line).items():
            point = metric_name(name), line["step"]
            if self._stored_counts[point]:
                self._stored_counts[point] -= 1
            else:
                metrics.append(Metric(point[0], value, now, point[1]))
        self._client.log_batch(self._run_id, metrics=metrics)

    def close(self, is_finished: bool) -> None:
        """Ends the run of MLflow.

        It is FINISHED, or KILLED if not all tasks are trained.
        """
        self._client.set_terminated(self._run_id, "FINISHED" if is_finished else "KILLED")


def metric_name(name: str) -> str:
    """Returns a name with the characters that MLflow permits.

    >>> metric_name("student/loss (kd)")
    'student/loss _kd_'
    """
    return re.sub(r"[^\w\-. /]", "_", name)


def _resume(client, folder: Path) -> str | None:
    """Returns the run of a folder, marked as running; None if the store has none."""
    from mlflow.exceptions import MlflowException

    path = folder / ID_FILE
    if not path.exists():
        return None
    run_id = json.loads(path.read_text(encoding="utf-8"))["run_id"]
    try:
        client.update_run(run_id, status="RUNNING")
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    return run_id


def _start(client, experiment_id: str, info: RunInfo) -> str:
    """Returns a new run with its hyperparameters, whose id is written into the folder."""
    from mlflow.entities import Param

    run_id = client.create_run(experiment_id, run_name=info.name, tags={"workdir": str(info.workdir)}).info.run_id
    params = [Param(key, str(value)[:_PARAM_LENGTH]) for key, value in info.hyperparameters.items()]
    for first in range(0, len(params), _BATCH):
        client.log_batch(run_id, params=params[first : first + _BATCH])
    files.write_atomically(info.folder / ID_FILE, json.dumps({"run_id": run_id}) + "\n")
    return run_id


def _stored_points(client, run_id) -> Counter:
    """Returns (metric, step) -> number of values of a run."""
    names = client.get_run(run_id).data.metrics
    return Counter((name, metric.step) for name in names for metric in client.get_metric_history(run_id, name))


@contextmanager
def _locked(path: Path):
    """Holds the lock of a file, which the system frees if the process ends."""
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
