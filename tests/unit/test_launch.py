"""What SLURM's job script makes of signals and exit codes, with stand-ins for SLURM's commands."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SRUN = """#!/usr/bin/env bash
trap 'echo told >> "$SLURM_SUBMIT_DIR/log"; sleep 0.3; echo saved >> "$SLURM_SUBMIT_DIR/log"; exit 143' TERM
echo started >> "$SLURM_SUBMIT_DIR/log"
for _ in {1..100}; do sleep 0.05; [ -e "$SLURM_SUBMIT_DIR/end" ] && exit "$(cat "$SLURM_SUBMIT_DIR/end")"; done
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" >> "$SLURM_SUBMIT_DIR/log"
"""


@pytest.fixture
def job(tmp_path):
    """The started script, and a function to the lines of its log; a file `end` with a code ends its srun."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("bin/python", "")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path),
           "SLURM_JOB_ID": "77", "CDL_VENV": str(tmp_path)}  # fmt: skip
    process = subprocess.Popen(["bash", str(ROOT / "launch" / "slurm.sbatch")], env=env, stdout=subprocess.PIPE)
    log = tmp_path / "log"
    deadline = time.monotonic() + 10
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    yield process, lambda: log.read_text().splitlines()
    process.kill()


def test_told_to_stop_it_requeues_once_the_run_has_saved(job):
    process, log = job
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=10)
    assert (process.returncode, log()) == (0, ["started", "told", "saved", "requeue 77"])


@pytest.mark.parametrize(("code", "ends_with", "more"), [(143, 0, ["requeue 77"]), (2, 2, []), (0, 0, [])])
def test_only_processes_that_were_told_to_stop_are_requeued(job, tmp_path, code, ends_with, more):
    process, log = job
    (tmp_path / "end").write_text(str(code))
    process.wait(timeout=10)
    assert (process.returncode, log()) == (ends_with, ["started", *more])
