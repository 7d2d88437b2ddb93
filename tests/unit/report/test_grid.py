"""The grid: gains over the learner alone, their paired test, exported results."""

import json

import pytest

from cdl_jax.errors import UserError
from cdl_jax.evaluation.metrics import named_metrics
from cdl_jax.report import grid
from cdl_jax.report.__main__ import main as report_main
from cdl_jax.report.groups import read_groups

ALONE, KD, TEACHER = (50.0, 52.0, 54.0), (53.0, 56.0, 56.0), (80.0, 81.0, 82.0)


def store(folder, learner, scheme, seed, status="finished", teachers=(), more=(), **last):
    """Stores a run with final accuracies `last` and 10 points forgotten of task 0.

    `more` has further entries of its results.json.
    """
    run = folder / learner / scheme / f"seed_{seed}"
    run.mkdir(parents=True)
    config = {
        "seed": seed,
        "learner": {"name": learner},
        "distill": {"name": scheme},
        "cdl": {"teacher_runs": teachers},
    }
    rows = {name: [[value + 10], [value, value]] for name, value in last.items()}
    networks = {
        name: {"accuracy_matrix": each, "metrics": named_metrics(each, [1, 1]), "selection": {"layer_0": [[1]]}}
        for name, each in rows.items()
    }
    content = {"status": status, "networks": networks, "headline": ["student"], "formulas": {"last": "mean"}}
    content |= dict(more)
    (run / "results.json").write_text(json.dumps(content))
    (run / "config.json").write_text(json.dumps({"config": config}))
    return run


@pytest.fixture
def runs(tmp_path):
    folders = []
    for seed in range(3):
        folders.append(store(tmp_path, "l2p", "none", seed, student=ALONE[seed]))
        folders.append(store(tmp_path, "l2p", "kd", seed, student=KD[seed], teacher=TEACHER[seed]))
        accuracies = {"student": ALONE[seed] + 1, "teacher": 0.0}
        folders.append(store(tmp_path, "l2p", "dkd", seed, teachers=(f"l2p/kd/seed_{seed}",), **accuracies))
    for seed in range(2):
        folders.append(store(tmp_path, "apt", "none", seed, student=60.0))
        folders.append(store(tmp_path, "apt", "kd", seed, student=61.0 + seed, teacher=90.0))
    folders.append(store(tmp_path, "apt", "kd", 2, status="running", student=0.0, teacher=0.0))
    return folders


def test_gains_are_paired_by_seed_and_have_p_values(runs):
    head, *rows = grid.overview(read_groups(runs))
    table = {row[0]: dict(zip(head, row, strict=True)) for row in rows}
    assert head == ["", "l2p", "apt", "mean gain"] and list(table) == ["teacher", "none", "kd", "dkd"]
    # Differences 3, 4, 2: mean 3, deviation 1, standard error 1 / sqrt 3, t = 5.196 with two degrees of freedom.
    assert table["kd"]["l2p"] == "55.00 ± 1.73 (+3.00 ± 0.58, p 0.035)"
    # Differences 1 and 2 of the two finished seeds: t = 3 with one degree of freedom.
    assert table["kd"]["apt"] == "61.50 ± 0.71 (+1.50 ± 0.50, p 0.205)"
    # Over both learners, of seeds 0 and 1: (3 + 1) / 2 and (4 + 2) / 2.
    assert table["kd"]["mean gain"] == "+2.50 ± 0.50, p 0.126"
    # The teacher of the runs that trained it; equal differences have no p value.
    assert table["teacher"]["l2p"] == "81.00 ± 1.00 (+29.00 ± 0.58, p < 0.001)"
    assert table["dkd"]["l2p"] == "53.00 ± 2.00 (+1.00)" and table["dkd"]["apt"] == "-"
    assert table["none"]["l2p"] == "52.00 ± 2.00" and table["none"]["mean gain"] == "-"


def test_a_gain_of_a_distance_is_its_decrease(tmp_path):
    distance = {"metric": "distance", "lower_is_better": True}
    runs = [store(tmp_path, "gan", "none", s, more=distance, student=300.0) for s in (0, 1)]
    runs += [store(tmp_path, "gan", "kd", s, more=distance, student=290.0 + s) for s in (0, 1)]
    head, _, kd = grid.overview(read_groups(runs))
    assert kd[1].startswith("290.50 ± 0.71 (+9.50 ± 0.50, p") and head[1] == "gan"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"metric": "AP"}, "grid: runs have different metrics (AP, accuracy): name those of one"),
        ({"parent": {"path": "runs/a", "task": 1}}, "grid: some runs in l2p are branches of another run: name those"),
    ],
)
def test_runs_that_cannot_be_compared_are_refused(tmp_path, capsys, more, message):
    runs = [store(tmp_path, "l2p", "none", 0, student=50.0), store(tmp_path, "l2p", "kd", 0, more=more, student=51.0)]
    assert report_main(["grid", *map(str, runs)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


def test_details_show_each_definition_of_forgetting(runs):
    head, *rows = grid.details(read_groups(runs))
    row = dict(zip(head, rows[1], strict=True))
    assert (row["learner"], row["scheme"], row["seeds"]) == ("l2p", "kd", "3")
    assert row["forgetting_cdl"] == "5.00 ± 0.00" and row["forgetting_max"] == "10.00 ± 0.00"  # 10 / T, 10 / (T - 1)
    assert row["forgetting_coda"] == "10.00 ± 0.00"


def test_exported_results_reproduce_the_tables(runs, tmp_path, capsys):
    page, words = tmp_path / "page.md", [str(run) for run in runs]
    page.write_text("Before.\n<!-- tables -->\nold\n<!-- end of tables -->\nBehind.\n")
    exported, svg = tmp_path / "exported", tmp_path / "plot.svg"
    assert report_main(["grid", *words, "--update-page", str(page), "--plot", str(svg), "--export", str(exported)]) == 0
    first, drawn = page.read_text(), svg.read_bytes()
    assert first.startswith("Before.\n<!-- tables -->\n\n## Accuracy after the last task\n\n|  | l2p | apt |")
    assert first.endswith("\n<!-- end of tables -->\nBehind.\n") and "old" not in first
    again = [str(exported / run.relative_to(tmp_path)) for run in runs[:-1]]
    assert report_main(["grid", *again, "--update-page", str(page), "--plot", str(svg), "--export", str(exported)]) == 0
    assert page.read_text() == first and svg.read_bytes() == drawn
    results = json.loads((exported / "l2p/kd/seed_0/results.json").read_text())
    assert "formulas" not in results and set(results["networks"]["student"]) == {"accuracy_matrix", "metrics"}
    assert not (exported / "apt/kd/seed_2").exists()  # it was not finished
    before = (runs[0] / "results.json").read_bytes()
    for folder, message in ((tmp_path, "would replace it"), (page, "is not a folder: choose another folder")):
        capsys.readouterr()
        assert report_main(["grid", *words, "--export", str(folder)]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line
    assert (runs[0] / "results.json").read_bytes() == before
    capsys.readouterr()


def test_misnamed_folders_and_pages_without_marks_are_refused(runs, tmp_path, capsys):
    (tmp_path / "page.md").write_text("no marks")
    assert report_main(["grid", str(runs[0]), "--update-page", str(tmp_path / "page.md")]) == 2
    assert "there are no lines <!-- tables --> and" in capsys.readouterr().err
    assert report_main(["grid", str(runs[0]), "--update-page", str(tmp_path / "absent.md")]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert report_main(["grid", str(runs[0]), "--plot", str(tmp_path / "plot.svg")]) == 2
    assert "to compare with" in capsys.readouterr().err
    with pytest.raises(UserError, match="have different configs"):
        moved = store(tmp_path / "other", "l2p", "kd", 5, student=1.0, teachers=("elsewhere",))
        grid.overview(read_groups([*runs, moved]))
    (tmp_path / "begun/none/seed_0").mkdir(parents=True)
    assert report_main(["grid", str(tmp_path / "begun/none/seed_0")]) == 2
    assert "holds no results of a run yet" in capsys.readouterr().err
    assert report_main(["grid", str(tmp_path / "begun/none/seed_0"), str(runs[0])]) == 0
    loose = runs[0].rename(tmp_path / "loose")
    with pytest.raises(UserError, match="is not called <learner>/<scheme>/seed_<n>"):
        grid.overview(read_groups([loose]))


@pytest.fixture
def measured_runs(runs):
    """Runs of L2P that state their steps: those of `kd` also train a teacher."""
    for run in (run for run in runs if run.parts[-3] == "l2p"):
        path = run / "results.json"
        content = json.loads(path.read_text())
        phases = {"student": 100, "teacher": 50} if run.parts[-2] == "kd" else {"student": 100}
        content["cost"] = {
            "parameters": {"student": {"trainable": 400, "frozen": 9}, "teacher": {"trainable": 8, "frozen": 9}},
            "flops_per_step": {"student": 2e6, "teacher": 5e6},
            "steps": phases if run.parts[-2] != "dkd" else None,
        }
        content["stream"] = {"num_tasks": 2}
        path.write_text(json.dumps(content))
    return runs


def test_details_of_measured_runs_have_operations_and_parameters(measured_runs):
    head, *rows = grid.details(read_groups(measured_runs))
    cells = {(row[0], row[1]): dict(zip(head, row, strict=True)) for row in rows}
    # 100 steps of 2e6 for the student, and 50 of 5e6 for its teacher.
    assert [cells["l2p", name]["operations"] for name in ("none", "kd", "dkd")] == ["2.00e+08", "4.50e+08", "-"]
    assert cells["l2p", "kd"]["parameters a task"] == "200"
    assert (cells["apt", "kd"]["operations"], cells["apt", "kd"]["parameters a task"]) == ("-", "-")


def test_plots_of_operations_and_of_strength_have_the_numbers_of_each_row(measured_runs):
    groups = read_groups(measured_runs)
    assert grid.accuracy_by_operations(groups) == {
        "l2p, none": ([2e8] * 3, list(ALONE)),
        "l2p, kd": ([4.5e8] * 3, list(KD)),
    }
    # L2P alone has 52 and gains 3 over three seeds; APT alone has 60 and gains 1 and 2 in two.
    assert grid.gains_by_strength(groups) == {"kd": ([52.0, 60.0], [3.0, 1.5]), "dkd": ([52.0], [1.0])}


def test_the_command_writes_both_plots(measured_runs, tmp_path, capsys):
    words = ["grid", *map(str, measured_runs)]
    files = {option: tmp_path / f"{option}.svg" for option in ("operations", "strength")}
    assert report_main([*words, *(word for name, file in files.items() for word in (f"--plot-{name}", str(file)))]) == 0
    texts = {name: file.read_text() for name, file in files.items()}
    assert "<!-- floating-point operations of training -->" in texts["operations"]
    assert "<!-- l2p, kd -->" in texts["operations"] and "<!-- dkd -->" in texts["strength"]
    assert "<!-- accuracy of the learner alone, % -->" in texts["strength"]
    capsys.readouterr()
    alone = [str(run) for run in measured_runs if "apt" in run.parts]
    assert report_main(["grid", *alone, "--plot-operations", str(files["operations"])]) == 2
    assert "no finished run here states the number of its training steps" in capsys.readouterr().err
