"""README.md: its commands run here, and its tables equal the stored results.

Each command has a cheap form.
"""

import ast
import json
import re
import shlex
import statistics
import subprocess
import sys
import tomllib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cdl_jax import main
from cdl_jax.report import plots
from cdl_jax.report.__main__ import main as report_main

ROOT = Path(__file__).parents[3]
README = (ROOT / "README.md").read_text()
QUICKSTART = ROOT / "docs" / "results" / "quickstart"
ROWS = ("alone", "distilled", "joint", "linear_probe", "nearest_mean")
LEARNERS = ("apt", "coda", "dualprompt", "l2p")

OWN_IMAGES = "python -m cdl_jax.main --config configs/own_images.py --config.data.path=images --fetch"
SLURM = (
    "sbatch --nodes=1 --gpus-per-node=8 launch/slurm.sbatch --config configs/cifar100_l2p.py "
    "--workdir runs/cifar100_l2p"
)
OWN_SCHEME = "python -m cdl_jax.main --config quickstart:distill=mine.my_scheme"

# Command of README -> what is run in its place: words that follow those of the command, a shell command, or FILE::TEST,
# the test that runs the command itself. A command that needs hours, data or a cluster is described or parsed only. CI
# runs the quick start's two as they stand.
DESCRIBE = ("--mode", "describe")
CHEAP = {
    "pip install .": "tests/unit/commands/test_wheel.py::test_the_quick_start_runs_from_an_installed_wheel",
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
    "bash launch/sweep.sh runs/grid 0,1,2 quickstart --grid distill.alpha=0.1,0.5": "bash -n launch/sweep.sh",
    OWN_SCHEME: "tests/unit/commands/test_tutorials.py::test_first_scheme",
    OWN_IMAGES: "tests/unit/commands/test_readme.py::test_images_in_a_folder_are_learned",
    "python -m cdl_jax.report paper v4": (),
    SLURM: "bash -n launch/slurm.sbatch",
}


def fenced(language):
    """Returns the fenced blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)


def commands():
    """Returns all commands of README, each on one line."""
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
    if "::" in more:
        file, name = more.split("::")
        functions = [node.name for node in ast.parse((ROOT / file).read_text()).body if hasattr(node, "name")]
        assert name in functions and name.startswith("test_")
        return
    if isinstance(more, str):
        assert subprocess.run(shlex.split(more)).returncode == 0
        return
    module, *words = shlex.split(command)[2:]
    monkeypatch.setattr(sys, "argv", ["cdl_jax"])
    assert {"cdl_jax.main": main.main, "cdl_jax.report": report_main}[module]([*words, *more]) == 0


def arguments(command):
    """Returns the arguments of a `python -m cdl_jax.main` command."""
    return shlex.split(command)[3:]


def test_images_in_a_folder_are_learned(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for name in ("cat", "dog", "horse", "newt"):
        for split, count in (("train", 4), ("test", 2)):
            folder = tmp_path / "images" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(rng.integers(0, 256, (40, 50, 3), np.uint8)).save(folder / f"{i}.jpg")
    monkeypatch.chdir(tmp_path)
    few = {"train.epochs": 1, "train.batch_size": 4, "eval.batch_size": 4, "data.num_tasks": 2, "log.report": False}
    few |= {"learner.pool": 2, "learner.length": 2, "learner.top_k": 1, "eval.forward_transfer": False}
    for network in ("teacher", "student"):
        few |= {f"{network}.dim": 24, f"{network}.heads": 3, f"{network}.depth": 1, f"{network}.image_size": 32}
        few |= {f"{network}.weights": "random"}
    assert main.main([*arguments(OWN_IMAGES), *(f"--config.{key}={value}" for key, value in few.items())]) == 0
    stream = json.loads((tmp_path / "runs" / "own_images" / "results.json").read_text())["stream"]
    assert [task["classes"] for task in stream["tasks"]] == [["cat", "dog"], ["horse", "newt"]]


def test_lines_of_prose_fit_120_columns():
    prose = [line for line in README.splitlines() if not line.startswith(("|", "!["))]
    assert [line for line in prose if len(line) > 120] == []


def test_the_badges_are_true():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    tested = [name.rsplit(" ", 1)[1] for name in project["classifiers"] if re.fullmatch(r".*:: 3\.\d+", name)]
    badges = dict(re.findall(r"!\[(\w+): ([^]]+)\]\(docs/badges/\w+\.svg\)", README))
    assert badges == {"License": project["license"], "Python": f"{tested[0]} to {tested[-1]}"}
    for name, value in badges.items():
        badge = (ROOT / f"docs/badges/{name.lower()}.svg").read_text()
        assert f"<title>{name}: {value}</title>".lower() in badge.lower()


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


def test_the_quick_start_table_equals_the_stored_results(tmp_path):
    words = [str(run) for row in ROWS for run in stored(row)]
    assert report_main([*words, "--label-by-folder", "--out", str(tmp_path / "table.md")]) == 0
    found = (tmp_path / "table.md").read_text().removeprefix("## Runs\n\n").strip()
    assert found in README and found in (ROOT / "docs/start/quickstart.md").read_text()
    assert len({len(stored(row)) for row in ROWS}) == 1 and len(stored("alone")) >= 2


def test_the_curves_equal_the_stored_results():
    named = (("student alone", "alone", "student"), ("student distilled", "distilled", "student"),
             ("teacher", "distilled", "teacher"), ("nearest class mean", "nearest_mean", "network"))  # fmt: skip
    matrices = {}
    for name, row, network in named:
        networks = json.loads((QUICKSTART / row / "seed_0" / "results.json").read_text())["networks"]
        matrices[name] = networks[network]["accuracy_matrix"]
    assert plots.accuracy_curves(matrices) == (ROOT / "docs/start/quickstart.svg").read_text()


def mean_of(learner, scheme, network="student"):
    """Returns the mean final accuracy over the seeds; None without runs.

    The stream is Split-Glyph-100.
    """
    files = sorted((ROOT / "docs/results/glyph100" / learner / scheme).glob("seed_*/results.json"))
    networks = [json.loads(file.read_text())["networks"] for file in files]
    values = [(own.get(network) or own["network"])["metrics"]["last"] for own in networks]
    return statistics.fmean(values) if values else None


def results_table():
    """Returns the table of learners by schemes from the stored results."""
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


def test_the_results_table_equals_the_stored_results():
    assert results_table() in README
