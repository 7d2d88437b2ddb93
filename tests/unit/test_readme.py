"""README.md: each command has a cheap form that is run here, and its tables are those of the stored results."""

import json
import re
import shlex
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from cdl_jax import main, plots, report

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
QUICKSTART = ROOT / "docs" / "results" / "quickstart"
ROWS = ("alone", "distilled", "joint", "linear_probe", "nearest_mean")
LEARNERS = ("apt", "coda", "dualprompt", "l2p")

# Command of README -> what is run in its place: words of the command line of cdl_jax.main or cdl_jax.report, or a shell
# command. A command that needs hours, data or a cluster is described or parsed only. CI runs the quick start's two as
# they stand.
DESCRIBE = ("--mode", "describe")
CHEAP = {
    "pip install .": "test -f pyproject.toml",
    "bash launch/quickstart.sh": "bash -n launch/quickstart.sh",
    "bash launch/test.sh": "bash -n launch/test.sh",
    "python -m cdl_jax.main --config configs/cifar100_l2p.py": (
        *DESCRIBE,
        "--config.teacher.depth=1",
        "--config.student.depth=1",
        "--config.train.batch_size=4",
    ),
    "python -m cdl_jax.main --list": (),
    "python -m cdl_jax.main --config configs/quickstart.py --mode describe": (),
    "python -m cdl_jax.main --config configs/quickstart.py:distill=fitnets --workdir runs/fitnets": DESCRIBE,
    "python -m cdl_jax.report --paper v4": (),
    "sbatch launch/slurm.sbatch --config configs/cifar100_l2p.py --workdir runs/cifar100_l2p": "bash -n "
    "launch/slurm.sbatch",
}


def fenced(language):
    """The fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands():
    """All commands of README, each on one line."""
    text = "".join(fenced("bash")).replace("\\\n", " ")
    return [" ".join(line.split()) for line in text.splitlines() if line.strip()]


def test_every_command_has_a_cheap_form():
    assert sorted(commands()) == sorted(CHEAP)


def test_the_quick_start_is_two_commands():
    block = README.split("## Quick start\n", 1)[1].split("```bash\n", 1)[1].split("```", 1)[0]
    assert block.splitlines() == ["bash launch/quickstart.sh", "bash launch/test.sh"]


@pytest.mark.parametrize("command", CHEAP)
def test_a_command_runs(command, monkeypatch):
    monkeypatch.chdir(ROOT)
    more = CHEAP[command]
    if isinstance(more, str):
        assert subprocess.run(shlex.split(more)).returncode == 0
        return
    module, *words = shlex.split(command)[2:]
    monkeypatch.setattr(sys, "argv", ["cdl_jax"])
    assert {"cdl_jax.main": main, "cdl_jax.report": report}[module].main([*words, *more]) == 0


def test_the_python_example_runs(tmp_path, monkeypatch, capsys):
    (code,) = fenced("python")
    small = "config.train.epochs = 1; config.data.max_train_per_class = 16; config.log.report = False"
    assert code.count("config.train.epochs = 2") == 1
    monkeypatch.syspath_prepend(str(ROOT))
    monkeypatch.chdir(tmp_path)
    exec(code.replace("config.train.epochs = 2", small), {})
    printed = float(capsys.readouterr().out.split()[-1])
    stored = json.loads((tmp_path / "runs/example/results.json").read_text())
    assert printed == stored["networks"]["student"]["metrics"]["last"]


def stored(row):
    return sorted((QUICKSTART / row).glob("seed_*"))


def test_the_quick_start_table_is_that_of_the_stored_results(tmp_path):
    words = [str(run) for row in ROWS for run in stored(row)]
    assert report.main([*words, "--names", "--out", str(tmp_path / "table.md")]) == 0
    found = (tmp_path / "table.md").read_text().removeprefix("## Runs\n\n").strip()
    assert found in README and found in (ROOT / "docs/quickstart.md").read_text()
    assert len({len(stored(row)) for row in ROWS}) == 1 and len(stored("alone")) >= 2


def test_the_curves_are_those_of_the_stored_results():
    named = (("student alone", "alone", "student"), ("student distilled", "distilled", "student"),
             ("teacher", "distilled", "teacher"), ("nearest class mean", "nearest_mean", "network"))  # fmt: skip
    matrices = {}
    for name, row, network in named:
        networks = json.loads((QUICKSTART / row / "seed_0" / "results.json").read_text())["networks"]
        matrices[name] = networks[network]["accuracy_matrix"]
    assert plots.curves(matrices) == (ROOT / "docs/quickstart.svg").read_text()


def mean_of(learner, scheme, network="student"):
    """Mean of the final accuracy over the seeds of Split-Glyph-100, None without runs."""
    files = sorted((ROOT / "docs/results/glyph100" / learner / scheme).glob("seed_*/results.json"))
    networks = [json.loads(file.read_text())["networks"] for file in files]
    values = [(own.get(network) or own["network"])["metrics"]["last"] for own in networks]
    return statistics.fmean(values) if values else None


def results_table():
    """README's table of learners by schemes."""
    rows = ["| | APT | CODA-Prompt | DualPrompt | L2P |", "|---|---|---|---|---|"]
    schemes = ("none", "kd", "dkd", "fitnets", "reviewkd", "kd_token", "kdp", "prompt_mapping", "vkd", "joint")
    for scheme in schemes:
        values = [mean_of(learner, scheme) for learner in LEARNERS]
        rows.append(f"| {scheme} | " + " | ".join("-" if v is None else f"{v:.1f}" for v in values) + " |")
    teacher = [f"{mean_of(learner, 'kd', 'teacher'):.1f}" for learner in LEARNERS]
    rows.append("| teacher | " + " | ".join(teacher) + " |")
    probe, nearest = mean_of("none", "probe"), mean_of("student", "nearest_mean")
    rows.append(f"| linear probe of the student's backbone | {' | '.join([f'{probe:.1f}'] * 4)} |")
    rows.append(f"| nearest class mean on the student's backbone | {' | '.join([f'{nearest:.1f}'] * 4)} |")
    return "\n".join(rows)


def test_the_results_table_is_that_of_the_stored_results():
    assert results_table() in README
