"""Files of offline runs of Weights & Biases; rows that a resumed online run skips.

Needs the extra `wandb`.
"""

import json
import struct

import pytest

from cdl_jax.errors import UserError
from cdl_jax.run.loggers import wandb_run
from tests.support.logger_lines import LINES, log_resumed
from tests.unit.run.test_optional_packages import run_without

_BLOCK = 32768  # bytes of a block of the file, in the log format of LevelDB
_HEADER = 7  # bytes before the first record, and of the header of each part of a record

KILLED = """
    import os
    from pathlib import Path
    from cdl_jax.run.loggers import wandb_run
    from tests.support.logger_lines import log_killed
    log_killed(wandb_run, Path(sys.argv[1]))
    os._exit(9)
"""


def records(path):
    """Yields the Record messages of a .wandb file."""
    from wandb.proto import wandb_internal_pb2

    data, position, parts = path.read_bytes(), _HEADER, b""
    while position + _HEADER <= len(data):
        left = _BLOCK - position % _BLOCK
        if left < _HEADER:
            position += left
            continue
        _, length, kind = struct.unpack("<IHB", data[position : position + _HEADER])
        parts += data[position + _HEADER : position + _HEADER + length]
        position += _HEADER + length
        if kind in (1, 4):  # a complete record, or its last part
            yield wandb_internal_pb2.Record.FromString(parts)
            parts = b""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    # WANDB_SERVICE: the service of this process, which a killed process would share.
    for name in ("WANDB_DIR", "WANDB_PROJECT", "WANDB_API_KEY", "WANDB_SERVICE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "a").mkdir()
    return tmp_path / "a"


def read_items(items):
    return {"/".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


def test_a_resumed_run_is_one_folder_with_each_line_once(folder):
    assert run_without([], KILLED, folder).returncode == 9
    log_resumed(wandb_run, folder)
    (path,) = (folder / "wandb").glob("offline-run-*/*.wandb")
    found = list(records(path))
    rows = [read_items(record.history.item) for record in found if record.HasField("history")]
    own = [{key: value for key, value in row.items() if not key.startswith("_")} for row in rows]
    assert own == [
        {"step": 2, "task": 0, "phase": "teacher", "epoch": 0, "teacher/loss": 1.5},
        {"step": 4, "task": 0, "phase": "student", "epoch": 0, "student/loss": 0.25},
        LINES[2],
        {"step": 6, "task": 1, "phase": "student", "epoch": 1, "student/loss": 0.125},
        LINES[4],
    ]
    (run,) = [record.run for record in found if record.HasField("run")]
    assert (run.display_name, run.project, run.run_id) == ("a", "cdl_jax", json.loads(
        (folder / "wandb_run.json").read_text())["id"])  # fmt: skip
    config = {item.key: json.loads(item.value_json) for item in run.config.update}
    assert config["optim"] == {"learning_rate": 0.5, "betas": [0.9, 0.99]} and config["seed"] == 3
    assert [record.exit.exit_code for record in found if record.HasField("exit")] == [0]


class Recorder:
    def __init__(self):
        self.rows, self.code = [], None

    def log(self, row):
        self.rows.append(row)

    def finish(self, exit_code):
        self.code = exit_code


def test_an_online_run_that_already_has_rows_gets_the_others():
    run = Recorder()
    logger = wandb_run.WandbLogger(run, num_stored=4)
    for line in LINES:
        logger.write(line)
    logger.close(False)
    assert run.rows == [LINES[4]] and run.code == 1


def test_without_an_account_nothing_starts(folder, monkeypatch):
    wandb_run.check_login()  # offline
    monkeypatch.setenv("WANDB_MODE", "online")
    import wandb

    def refuses():
        raise wandb.errors.UsageError("No API key configured.")

    monkeypatch.setattr(wandb, "login", refuses)
    with pytest.raises(UserError, match="no API key: run wandb login, or set WANDB_MODE=offline"):
        wandb_run.check_login()

    def is_unreachable():
        raise wandb.errors.AuthenticationError("Failed to authenticate")

    monkeypatch.setattr(wandb, "login", is_unreachable)
    wandb_run.check_login()  # the run begins, and its logger reports the failure
