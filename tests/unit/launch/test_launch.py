"""Signals and exit codes in the launch scripts.

Fakes replace the commands that the scripts call.
"""

import importlib.util
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
# Like the real srun, it kills its tasks when it receives TERM.
SRUN = """#!/usr/bin/env bash
trap 'echo killed >> "$SLURM_SUBMIT_DIR/log"; exit 137' TERM
echo "started $*" >> "$SLURM_SUBMIT_DIR/log"
for _ in {1..400}; do sleep 0.05; [ -e "$SLURM_SUBMIT_DIR/end" ] && exit "$(cat "$SLURM_SUBMIT_DIR/end")"; done
"""
SCONTROL = """#!/usr/bin/env bash
echo "$@" >> "$SLURM_SUBMIT_DIR/log"
"""
SQUEUE = """#!/usr/bin/env bash
cat "$SLURM_SUBMIT_DIR/state"
"""


@pytest.fixture
def job(tmp_path):
    """Yields the process of the script, and a function for the lines of its log.

    A file `end` with a code ends its srun.
    """
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL), ("squeue", SQUEUE), ("bin/python", ""), ("state", "")):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "SLURM_SUBMIT_DIR": str(tmp_path),
           "SLURM_JOB_ID": "77", "SLURM_NNODES": "2", "SLURM_GPUS_ON_NODE": "8", "SLURM_NTASKS_PER_NODE": "4",
           "SLURM_CPUS_ON_NODE": "64", "CDL_VENV": str(tmp_path)}  # fmt: skip
    process = subprocess.Popen(["bash", str(ROOT / "launch" / "slurm.sbatch")], env=env, stdout=subprocess.PIPE)
    log = tmp_path / "log"
    deadline = time.monotonic() + 60
    while not log.exists() and time.monotonic() < deadline:
        time.sleep(0.01)
    yield process, lambda: log.read_text().splitlines()[1:]
    process.kill()
    (tmp_path / "end").write_text("0")


def test_processes_and_cpus_follow_the_gpus_of_a_node(job, tmp_path):
    started = (tmp_path / "log").read_text()
    assert "--ntasks=16 --ntasks-per-node=8 --cpus-per-task=8 " in started


@pytest.mark.parametrize(
    ("code", "state", "ends_with", "more"),
    [
        (138, "RUNNING", 0, ["requeue 77"]),  # time limit
        (143, "RUNNING", 0, ["requeue 77"]),  # preemption
        (143, "CANCELLED", 143, []),  # scancel
        (138, "COMPLETING", 138, []),
        (2, "RUNNING", 2, []),
        (0, "RUNNING", 0, []),
    ],
)
def test_a_job_is_requeued_if_it_saved_and_was_not_cancelled(job, tmp_path, code, state, ends_with, more):
    process, log = job
    (tmp_path / "state").write_text(state)
    (tmp_path / "end").write_text(str(code))
    process.wait(timeout=60)
    assert (process.returncode, log()) == (ends_with, more)


def test_a_term_to_the_script_kills_no_process_of_the_run(job, tmp_path):
    process, log = job
    (tmp_path / "state").write_text("CANCELLED")
    process.send_signal(signal.SIGTERM)
    time.sleep(0.3)
    assert process.poll() is None
    (tmp_path / "end").write_text("143")
    process.wait(timeout=60)
    assert (process.returncode, log()) == (143, [])


LEARN = """#!/usr/bin/env bash
[ "$1" = -m ] || exit 0
if [ "$2" = cdl_jax.report ]; then echo "$*" >> "$LOG.report"; echo 0.02; [ "$3" != "${BROKEN-}" ]; exit; fi
while [ "$1" != --workdir ]; do [ "$1" = --config ] && config=$2; shift; done
echo "$2 $config" >> "$LOG"
[ -z "${REFUSED-}" ] || [[ " $* " != *"$REFUSED"* ]] || exit 2
[[ $config != *teacher_run=* ]] || grep -q finished "${config##*teacher_run=}/results.json" || exit 2
[ -z "${STOP-}" ] || { trap 'echo saved >> "$LOG"; exit 143' TERM; echo ready; sleep 9 9>&- & wait $!; }
runs=("$2")
if [[ "$*" =~ --config.seeds=.([0-9,]+) ]]; then
  [[ "$*" == *--config.data.class_order_seed=-1* && "$*" == *--config.data.max_train_per_class=45* ]] || exit 2
  IFS=, read -ra runs <<<"${BASH_REMATCH[1]}"
  runs=("${runs[@]/#/$2/seed_}")
fi
[[ $2 != */pretrain/* ]] || { sleep 0.5; touch "$2/weights.npz"; }
for run in "${runs[@]}"; do mkdir -p "$run"; echo '"status": "finished"' > "$run/results.json"; done
"""


@pytest.fixture
def launched(tmp_path):
    """Starts a script with a fake training, which writes its calls to the file `log`."""
    key = subprocess.run("cat requirements.lock requirements.txt pyproject.toml | cksum", shell=True, cwd=ROOT,
                         capture_output=True, text=True, check=True).stdout  # fmt: skip
    for name, text in (("bin/python", LEARN), ("made-from", f"{ROOT} cpu\n{key}"), ("data/glyph100.npz", ""),
                       ("data/glyph_teacher.npz", ""), ("data/glyph_student.npz", ""), ("data/emoji32.npz", ""),
                       ("data/glyph_pretrain354.npz", ""), ("data/efficientnet-lite0-57934424.pth", "")):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    env = {**os.environ, "CDL_VENV": str(tmp_path), "CDL_DATA": str(tmp_path / "data"), "LOG": str(tmp_path / "log"),
           "CDL_WAIT": "0.2"}  # fmt: skip

    def start(*arguments, script="glyph100.sh", **more):
        command = ["bash", str(ROOT / "launch" / script), str(tmp_path / "runs"), *arguments]
        return subprocess.Popen(command, env={**env, **more}, stdout=subprocess.PIPE, text=True)

    return start, lambda: [line.split() for line in (tmp_path / "log").read_text().splitlines()]


def test_two_processes_share_a_matrix_and_run_each_seed_once(launched):
    start, log = launched
    both = [start(CDL_SEEDS="0 1") for _ in range(2)]
    assert [process.wait(timeout=240) for process in both] == [0, 0]
    runs = [workdir.split("/runs/")[1] for workdir, _ in log()]
    assert len(runs) == len(set(runs)) == 2 * (4 * 9 - 1 + 2 + 2 + 4)
    seeds = [int(run[-1]) for run in runs]
    assert (
        sum(a > b for a, b in zip(seeds, sorted(seeds), strict=True)) <= 1
    )  # except one that the other process was training
    assert start(CDL_SEEDS="0 1").wait(timeout=240) == 0 and len(log()) == len(runs)


def test_the_matrix_of_learners_searches_each_rate_once_and_trains_all_rows_with_it(launched, tmp_path):
    start, log = launched
    choices = {"CDL_SEEDS": "0 1", "CDL_LEARNERS": "l2p aper", "CDL_SCHEMES": "past dkd", "CDL_CLOSED": "simple_cil"}
    for _ in range(2):  # the second call finds all runs complete
        assert start("glyph100", script="learners.sh", CDL_RATES="1e-2 2e-2", **choices).wait(timeout=240) == 0
    runs = [workdir.split("/runs/")[1] for workdir, _ in log()]
    searched = [
        f"search/glyph100/{learner}/{rate}/seed_100" for learner in ("l2p", "aper") for rate in ("1e-2", "2e-2")
    ]
    rows = ["simple_cil/none", "l2p/none", "l2p/kd", "l2p/past", "l2p/dkd", "aper/none", "aper/kd", "aper/dkd"]
    assert sorted(runs) == sorted([*searched, *(f"glyph100/{row}/seed_{seed}" for row in rows for seed in (0, 1))])
    teachers = {run: config.partition("teacher_run=")[2] for run, (_, config) in zip(runs, log(), strict=True)}
    assert teachers["glyph100/aper/dkd/seed_1"] == str(tmp_path / "runs/glyph100/aper/kd/seed_1")
    words = (tmp_path / "log.report").read_text().splitlines()
    assert [line.split()[2] for line in words] == ["best", "best", "grid", "best", "best", "grid"]
    assert words[0].endswith(" ".join(str(tmp_path / "runs" / run) for run in searched[:2]))
    other = {**choices, "CDL_RATES": "3e-2", "REFUSED": "learning_rate=3e-2"}
    assert start("glyph100", script="learners.sh", **other).wait(timeout=240) == 1
    further = {workdir.split("/runs/")[1] for workdir, _ in log()[len(runs) :]}
    assert further == {f"search/glyph100/{learner}/3e-2/seed_100" for learner in ("l2p", "aper")}


def test_a_search_without_a_best_rate_is_a_failure(launched, tmp_path):
    start, log = launched
    choices = {"CDL_SEEDS": "0", "CDL_LEARNERS": "l2p", "CDL_SCHEMES": "", "CDL_CLOSED": "simple_cil"}
    process = start("glyph100", script="learners.sh", CDL_RATES="1e-2 2e-2", BROKEN="best", **choices)
    assert process.wait(timeout=240) == 1
    assert [workdir.split("/runs/")[1] for workdir, _ in log()] == [
        "glyph100/simple_cil/none/seed_0", "search/glyph100/l2p/1e-2/seed_100", "search/glyph100/l2p/2e-2/seed_100",
    ]  # fmt: skip
    assert not (tmp_path / "runs/glyph100.md").exists()


def test_a_finished_run_of_other_settings_is_a_failure(launched, tmp_path):
    start, log = launched
    choices = {"CDL_SEEDS": "0", "CDL_LEARNERS": "l2p", "CDL_SCHEMES": "", "CDL_CLOSED": "", "CDL_RATES": "1e-2"}
    assert start("glyph100", script="learners.sh", **choices).wait(timeout=240) == 0
    number = len(log())
    moved = {**choices, "CDL_DATA": f"{tmp_path}/./data"}
    assert start("glyph100", script="learners.sh", **moved).wait(timeout=240) == 0 and len(log()) == number
    other = {**choices, "CDL_OVERRIDES": "--config.train.epochs=1", "REFUSED": "epochs=1"}
    assert start("glyph100", script="learners.sh", **other).wait(timeout=240) == 1
    assert len(log()) == number + 1  # the run of the search


def test_heads_are_fitted_on_each_distilled_student(launched):
    start, log = launched
    assert start(script="glyph100_goal.sh", CDL_SEEDS="3").wait(timeout=240) == 0
    runs = [workdir.split("/runs/")[1].removesuffix("/seed_3") for workdir, _ in log()]
    backbones = ("none", "teacher_backbone", "features", "labels")
    rows = [f"{head}/{name}" for head in ("simple_cil", "ranpac") for name in backbones]
    rows += ["ranpac/first_task", "ranpac/first_task_fitnets", "backbone/features", "backbone/labels"]
    assert sorted(runs) == sorted(rows)
    assert runs.index("backbone/features") < runs.index("ranpac/features")


def test_all_seeds_of_a_row_are_one_program_on_request(launched, tmp_path):
    start, log = launched
    assert start(CDL_SEEDS="0 4", CDL_TOGETHER="1").wait(timeout=240) == 0
    runs = [workdir.split("/runs/")[1] for workdir, _ in log()]
    assert len(runs) == len(set(runs)) == 4 * 9 - 1 + 2 + 2 + 4
    assert not any("seed_" in run or "teacher_run" in config for run, (_, config) in zip(runs, log(), strict=True))
    assert all(",seed=0" in config for _, config in log())
    runs_with_results = {
        str(path.parent.relative_to(tmp_path / "runs")) for path in tmp_path.glob("runs/*/*/*/results.json")
    }
    assert runs_with_results == {f"{run}/seed_{seed}" for run in runs for seed in (0, 4)}
    assert start(CDL_SEEDS="0 4", CDL_TOGETHER="1").wait(timeout=240) == 0 and len(log()) == len(runs)


@pytest.mark.parametrize(("script", "arguments", "rows"), [("glyph100.sh", ["all"], 43 + 20), ("emoji.sh", [], 29)])
def test_every_config_of_a_matrix_exists(launched, script, arguments, rows):
    start, log = launched
    assert start(*arguments, script=script, CDL_SEEDS="0").wait(timeout=240) == 0
    assert len({workdir for workdir, _ in log()}) == len(log()) == rows
    for config in {config for _, config in log()}:
        file, _, text = config.partition(":")
        spec = importlib.util.spec_from_file_location("of_launch", ROOT / file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        module.get_config(text)


@pytest.mark.parametrize(("script", "networks"), [("glyph100.sh", ["teacher", "student"]), ("emoji.sh", ["student"])])
def test_missing_backbones_are_pretrained_first_by_one_of_two_processes(launched, tmp_path, script, networks):
    start, log = launched
    for weights in tmp_path.glob("data/glyph_*.npz"):
        weights.unlink()
    both = [start(script=script, CDL_SEEDS="0") for _ in range(2)]
    assert [process.wait(timeout=240) for process in both] == [0, 0]
    runs = [workdir.split("/runs/")[1] for workdir, _ in log()]
    assert {*runs[: len(networks)]} == {f"pretrain/{network}" for network in networks} and len(runs) == len(set(runs))


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_stopped_matrix_saves_its_run_and_resumes_later(launched, number, code):
    start, log = launched
    process = start(CDL_SEEDS="0", STOP="1")
    while process.stdout.readline() != "ready\n":
        pass
    process.send_signal(number)
    assert process.wait(timeout=60) == code
    assert len(log()) == 2 and log()[1] == ["saved"]
    assert start(CDL_SEEDS="0").wait(timeout=240) == 0 and log()[2] == log()[0]
