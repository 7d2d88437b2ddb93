"""Processes that share a sweep run each command once, and list the missing runs."""

import os
import signal
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
CONFIGS = ("configs/quickstart.py", "configs/quickstart.py:distill=none")
TRAIN = """#!/usr/bin/env bash
[ "$1" = -m ] || exit 0
[ "$2" != cdl_jax.sweep ] || exec "$PLAN" "$@"
while [ "$1" != --workdir ]; do shift; done
echo "${2##*/sweep/} ${4#*compilation_cache=}" >> "$LOG"
case "$2" in *none*) [ -z "${SHARE-}" ] || [ -e "${2/-distill=none/}/sweep_complete" ] || exit 3 ;; esac
case "$2" in *"${FAIL-no such run}"*) exit "${CODE-2}" ;; esac
[ -z "${STOP-}" ] || {
  trap 'trap "" TERM; echo saved >> "$LOG"; exit 143' TERM
  trap : INT HUP USR1
  echo ready
  sleep 9 9>&- & while ! wait $!; do :; done
}
sleep 0.1
"""

# The plan of CONFIGS, as cdl_jax.sweep prints it. SHARE: the runs of the second take the teacher of the first.
PLAN = """#!/usr/bin/env bash
shift 2
while [[ $1 != */sweep ]]; do shift; done
IFS=, read -ra seeds <<<"$2"
for seed in "${seeds[@]}"; do
  for name in quickstart quickstart-distill=none; do
    teacher=
    [ -z "${SHARE-}" ] || [ $name = quickstart ] || teacher=$1/quickstart/seed_$seed
    words=("$1/$name/seed_$seed" "$teacher" --workdir "$1/$name/seed_$seed" "--config.seed=$seed"
      "--config.compilation_cache=$1/compiled")
    (IFS=$'\\x1f' && echo "${words[*]}")
  done
done
"""


@pytest.fixture
def sweep(tmp_path):
    """Returns a function that starts the script, and a function for the log's lines.

    A fake training writes runs and caches to the file `log`.
    """
    key = subprocess.run("cat requirements.lock requirements.txt pyproject.toml | cksum", shell=True, cwd=ROOT,
                         capture_output=True, text=True, check=True).stdout  # fmt: skip
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").write_text(TRAIN)
    (tmp_path / "plan").write_text(PLAN)
    for program in ("bin/python", "plan"):
        (tmp_path / program).chmod(0o755)
    (tmp_path / "made-from").write_text(f"{ROOT} cpu\n{key}")
    env = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "CDL_"))}
    env |= {"CDL_VENV": str(tmp_path), "LOG": str(tmp_path / "log"), "PLAN": str(tmp_path / "plan")}

    def start(*options, seeds="0,1,2", **more):
        command = ["bash", str(ROOT / "launch" / "sweep.sh"), *options, str(tmp_path / "sweep"), seeds, *CONFIGS]
        return subprocess.Popen(command, env={**env, **more}, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                                start_new_session=True)  # fmt: skip

    log = tmp_path / "log"
    return start, lambda: [line.split() for line in log.read_text().splitlines()] if log.exists() else []


def missing(tmp_path):
    return (tmp_path / "sweep" / "missing.txt").read_text().replace(f"{tmp_path}/sweep/", "").splitlines()


def runs(*seeds):
    return {f"{name}/seed_{seed}" for name in ("quickstart", "quickstart-distill=none") for seed in seeds}


@pytest.mark.parametrize("more", [{}, {"SLURM_ARRAY_JOB_ID": "7"}])
def test_two_calls_with_three_processes_run_each_command_once_with_one_cache(sweep, tmp_path, more):
    start, log = sweep
    both = [start("-j", "3", **more) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    assert sorted(run for run, _ in log()) == sorted(runs(0, 1, 2))
    assert {cache for _, cache in log()} == {f"{tmp_path}/sweep/compiled"}
    assert start("-j", "3").wait(timeout=120) == 0 and len(log()) == 6  # no run is repeated
    assert missing(tmp_path) == []


def test_only_failed_runs_are_listed_and_repeated(sweep, tmp_path):
    start, log = sweep
    process = start("-j", "2", FAIL="none/seed_1")
    assert process.wait(timeout=120) == 1
    assert "5 runs complete, 1 failed, 0 assigned to other processes" in process.stdout.read()
    assert missing(tmp_path) == ["quickstart-distill=none/seed_1 failed (exit 2)"]
    assert len(log()) == 6  # tried once, although two processes reached it
    assert start("-j", "2").wait(timeout=120) == 0
    assert [run for run, _ in log()[6:]] == ["quickstart-distill=none/seed_1"] and missing(tmp_path) == []


def test_runs_begin_after_the_run_that_trains_their_teacher(sweep, tmp_path):
    start, log = sweep
    assert [process.wait(timeout=120) for process in [start("-j", "3", SHARE="1") for _ in range(2)]] == [0, 0]
    assert sorted(run for run, _ in log()) == sorted(runs(0, 1, 2)) and missing(tmp_path) == []


def test_runs_whose_teacher_failed_are_listed(sweep, tmp_path):
    start, log = sweep
    process = start("-j", "2", SHARE="1", FAIL="quickstart/seed_1")
    assert process.wait(timeout=120) == 1
    out = process.stdout.read()
    assert "4 runs complete, 1 failed, 0 assigned to other processes, 1 without their teacher" in out
    assert missing(tmp_path) == [
        "quickstart/seed_1 failed (exit 2)",
        "quickstart-distill=none/seed_1 not complete: its teacher is that of quickstart/seed_1, which failed",
    ]
    assert start("-j", "2", SHARE="1").wait(timeout=120) == 0
    assert sorted(run for run, _ in log()[5:]) == sorted(runs(1)) and missing(tmp_path) == []


@pytest.mark.parametrize("code", [137, 139])
def test_a_run_killed_by_the_system_has_failed_and_the_others_continue(sweep, tmp_path, code):
    start, log = sweep
    process = start(FAIL="quickstart/seed_0", CODE=str(code))
    assert process.wait(timeout=120) == 1 and len(log()) == 6
    assert missing(tmp_path) == [f"quickstart/seed_0 failed (exit {code})"]


# A closed terminal, or Ctrl-C, sends the signal to the complete process group.
@pytest.mark.parametrize("send", [os.kill, os.killpg])
@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGUSR1, 138)],
)
def test_after_a_signal_all_current_runs_save_and_the_rest_is_listed(sweep, tmp_path, number, code, send):
    start, log = sweep
    process = start("-j", "2", seeds="0", STOP="1")
    assert [process.stdout.readline() for _ in range(4)].count("ready\n") == 2
    send(process.pid, number)
    assert process.wait(timeout=60) == code
    assert [line for line in log() if line == ["saved"]] == [["saved"]] * 2
    assert set(missing(tmp_path)) == {f"{run} not complete" for run in runs(0)}
    assert start("-j", "2", seeds="0").wait(timeout=60) == 0 and missing(tmp_path) == []


@pytest.mark.parametrize("count", ["0", "two", "-1", ""])
def test_an_invalid_number_of_processes_is_refused_before_any_run(sweep, tmp_path, count):
    start, log = sweep
    process = start("-j", count)
    assert process.wait(timeout=60) == 2 and process.stderr.read().startswith("usage: bash launch/sweep.sh [-j N] ")
    assert log() == [] and not (tmp_path / "sweep").exists()
