"""Copies measurements into a run of Weights & Biases (`pip install wandb`).

The run is online or offline, by `WANDB_MODE` and wandb's settings. The project is `WANDB_PROJECT`, by default
`cdl_jax`. Row n of a run's history is line n of metrics.jsonl, and its key `step` is the x axis.
"""

import json
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path

from cdl_jax.errors import UserError
from cdl_jax.run.loggers.base import POSITION, Line, RunInfo, scalars
from cdl_jax.runtime import files

ID_FILE = "wandb_run.json"


def check_login() -> None:
    """Checks that wandb is offline or has an API key.

    In a terminal wandb requests the key.

    Raises:
      UserError: there is no key.
    """
    if os.environ.get("WANDB_MODE", "online") != "online":
        return
    import wandb

    try:
        wandb.login()
    except wandb.errors.UsageError:
        raise UserError(
            "config.log.to has 'wandb', but there is no API key: run wandb login, or set WANDB_MODE=offline"
        ) from None
    except wandb.errors.Error:
        pass  # the service is not reachable now, which the logger reports


def open(info: RunInfo, lines: Sequence[Line]) -> "WandbLogger":
    """Starts or resumes the run, and adds the lines that it lacks.

    An offline run cannot be resumed, so a new folder with all lines replaces that of the earlier process.
    """
    import wandb

    run_id = _run_id(info.folder)
    root = Path(os.environ.get("WANDB_DIR", info.folder))
    earlier = [*(root / "wandb").glob(f"offline-run-*-{run_id}")]
    settings = wandb.Settings(silent=True, console="off", save_code=False, reinit="create_new")
    project = os.environ.get("WANDB_PROJECT", "cdl_jax")
    config = json.loads(json.dumps(info.config))  # without tuples
    run = wandb.init(project=project, id=run_id, name=info.name, dir=root, config=config, resume="allow",
                     settings=settings)  # fmt: skip
    run.define_metric("step", hidden=True)
    run.define_metric("*", step_metric="step")
    logger = WandbLogger(run, run.step if run.resumed else 0)
    for line in lines:
        logger.write(line)
    if run.offline:
        _remove_folders(earlier, keep=Path(run.dir).parent)
    return logger


class WandbLogger:
    """Adds lines to the history of a run."""

    def __init__(self, run, num_stored: int):
        """Takes an open run of wandb.

        Args:
          run: the run.
          num_stored: number of lines that the run already has; the first `num_stored` lines are not added again.
        """
        self._run, self._num_stored = run, num_stored

    def write(self, line: Line) -> None:
        """Adds a line as one row, unless the run has it."""
        if self._num_stored:
            self._num_stored -= 1
            return
        position = {name: line[name] for name in POSITION if name in line}
        self._run.log(position | scalars(line))

    def close(self, is_finished: bool) -> None:
        """Ends the run of wandb.

        The run is failed if not all tasks are trained.
        """
        self._run.finish(exit_code=0 if is_finished else 1)


def _run_id(folder: Path) -> str:
    """Returns the id of a folder's run, which is written there."""
    path = folder / ID_FILE
    if path.exists():
        return json.loads(path.read_text(encoding="utf-8"))["id"]
    run_id = secrets.token_hex(4)
    files.write_atomically(path, json.dumps({"id": run_id}) + "\n")
    return run_id


def _remove_folders(folders: Sequence[Path], keep: Path) -> None:
    for folder in folders:
        if folder.resolve() != keep.resolve():
            shutil.rmtree(folder, ignore_errors=True)
