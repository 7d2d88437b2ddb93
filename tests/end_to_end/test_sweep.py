"""A grid of two by two options on tiny data.

One teacher is trained, and one command prints the table.
"""

import json
import os
import subprocess
import sys

import pytest

from cdl_jax.report.__main__ import main as report_main
from tests.end_to_end.command import ROOT, TINY, environment

ALPHAS, TEMPERATURES = ("0.1", "0.9"), ("1.0", "4.0")
SMALL = (
    "--config.data.num_tasks=2", "--config.data.max_train_per_class=4", "--config.train.epochs=1",
    "--config.log.every_steps=1", "--config.log.report=False", "--config.log.to=()",
    "--config.eval.forward_transfer=False",
)  # fmt: skip


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    """The folder of the sweep, and the output of its first and second call."""
    home = tmp_path_factory.mktemp("sweep")
    (home / "venv" / "bin").mkdir(parents=True)
    program = home / "venv" / "bin" / "python"
    program.write_text(f'#!/usr/bin/env bash\nexec "{sys.executable}" "$@"\n')
    program.chmod(0o755)
    key = subprocess.run("cat requirements.lock requirements.txt pyproject.toml | cksum", shell=True, cwd=ROOT,
                         capture_output=True, text=True, check=True).stdout  # fmt: skip
    (home / "venv" / "made-from").write_text(f"{ROOT} cpu\n{key}")
    command = [
        "bash", "launch/sweep.sh", "-j", "2", str(home / "runs"), "0", TINY,
        "--grid", f"distill.alpha={','.join(ALPHAS)}", "--grid", f"distill.temperature={','.join(TEMPERATURES)}",
        "--", *SMALL,
    ]  # fmt: skip
    env = {key: value for key, value in environment().items() if not key.startswith(("SLURM_", "CDL_"))}
    calls = [
        subprocess.run(command, cwd=ROOT, env={**env, "CDL_VENV": str(home / "venv"), "HOME": os.environ["HOME"]},
                       capture_output=True, text=True, timeout=400)
        for _ in range(2)
    ]  # fmt: skip
    return home / "runs", calls


def runs(folder):
    return {(a, t): folder / "tiny" / f"distill.alpha={a},distill.temperature={t}" / "seed_0"
            for a in ALPHAS for t in TEMPERATURES}  # fmt: skip


def test_one_teacher_is_trained_for_the_four_runs(swept):
    folder, (first, second) = swept
    assert first.returncode == 0, first.stdout + first.stderr
    assert "4 runs complete, 0 failed, 0 assigned to other processes" in first.stdout
    phases = {
        point: {json.loads(line).get("phase") for line in (run / "metrics.jsonl").read_text().splitlines()} - {None}
        for point, run in runs(folder).items()
    }
    trained = [point for point, names in phases.items() if "teacher" in names]
    assert trained == [(ALPHAS[0], TEMPERATURES[0])] and all("student" in names for names in phases.values())
    contents = [json.loads((run / "results.json").read_text()) for run in runs(folder).values()]
    teachers = [content["networks"]["teacher"]["accuracy_matrix"] for content in contents]
    assert [content["status"] for content in contents] == ["finished"] * 4 and teachers == teachers[:1] * 4
    assert second.returncode == 0 and "== " not in second.stdout  # the second call trains nothing


def test_one_command_prints_the_table(swept, capsys):
    folder, _ = swept
    assert report_main([str(folder)]) == 0
    shown = capsys.readouterr().out
    for alpha in ALPHAS:
        for temperature in TEMPERATURES:
            assert f"distill.alpha={alpha}, distill.temperature={temperature}" in shown
    assert "teacher_runs" not in shown
    assert report_main(["sweep", "distill.alpha", str(folder)]) == 0
    rows = capsys.readouterr().out.splitlines()
    assert rows[0].split() == ["distill.alpha", "0.1", "0.9"] and len(rows) == 3
