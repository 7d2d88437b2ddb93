"""Runs that differ in one option: lines of accuracies by value."""

import json

import pytest

from cdl_jax.errors import UserError
from cdl_jax.evaluation.metrics import named_metrics
from cdl_jax.report import sweep
from cdl_jax.report.__main__ import main as report_main
from cdl_jax.report.groups import read_groups


def without_seeds(lines):
    """Returns label -> value -> accuracies of the seeds."""
    return {
        label: {value: [*accuracies.values()] for value, accuracies in line.items()} for label, line in lines.items()
    }


def store(folder, name, seed, accuracy, alpha, scheme="kd", teachers=(), status="finished", method="cdl", **more):
    run = folder / name / f"seed_{seed}"
    run.mkdir(parents=True)
    config = {"seed": seed, "distill": {"name": scheme, "alpha": alpha}, method: {"teacher_runs": teachers}}
    networks = {"student": {"accuracy_matrix": [[accuracy]], "metrics": named_metrics([[accuracy]], [1])}}
    content = {"status": status, "networks": networks, "headline": ["student"], **more}
    if more.get("lower_is_better"):
        content["metric"] = "distance"
    (run / "results.json").write_text(json.dumps(content))
    (run / "config.json").write_text(json.dumps({"config": config}))
    return str(run)


@pytest.fixture
def runs(tmp_path):
    folders = [store(tmp_path, f"kd_{a}", s, 50 + 10 * a + s, a) for a in (0.9, 0.1) for s in range(2)]
    folders.append(store(tmp_path, "kd_0.5", 0, 60.0, 0.5))
    folders.append(store(tmp_path, "kd_0.5", 1, 0.0, 0.5, status="running"))
    folders.append(store(tmp_path, "fitnets", 1, 0.0, 0.5, "fitnets", status="running"))
    return [*folders, *(store(tmp_path, f"dkd_{a}", 0, 40.0 + a, a, "dkd", (f"other_{a}",)) for a in (0.1, 0.5))]


def test_runs_with_the_same_other_settings_are_one_line_with_ascending_values(runs):
    lines = sweep.group_by_option(read_groups(runs), "distill.alpha")
    assert without_seeds(lines) == {
        "distill.name=kd": {0.1: [51.0, 52.0], 0.5: [60.0], 0.9: [59.0, 60.0]},
        "distill.name=dkd": {0.1: [40.1], 0.5: [40.5]},
        "distill.name=fitnets": {0.5: []},
    }
    assert lines["distill.name=kd"][0.1] == {(0, 0, 0): 51.0, (1, 0, 0): 52.0}
    assert list(lines["distill.name=kd"]) == [0.1, 0.5, 0.9]
    assert sweep.table(lines, "distill.alpha") == [
        ["distill.alpha", "0.1", "0.5", "0.9"],
        ["distill.name=kd", "51.50 ± 0.71", "60.00", "59.50 ± 0.71"],
        ["distill.name=fitnets", "-", "-", "-"],
        ["distill.name=dkd", "40.10", "40.50", "-"],
    ]


def test_the_command_writes_the_same_table_and_plot_each_time(runs, tmp_path, capsys):
    words, outputs = ["sweep", "distill.alpha", *runs], []
    for name in ("one", "two"):
        table, plot = tmp_path / f"{name}.md", tmp_path / f"{name}.svg"
        assert report_main([*words, "--out", str(table), "--plot", str(plot)]) == 0
        outputs.append((table.read_text(), plot.read_bytes()))
    assert outputs[0] == outputs[1] and outputs[0][1].startswith(b"<svg")
    assert "| distill.name=kd | 51.50 ± 0.71 | 60.00 | 59.50 ± 0.71 |" in outputs[0][0]
    assert "report.html" not in capsys.readouterr().out


def test_text_values_can_be_swept(tmp_path):
    runs = [store(tmp_path, name, 0, 50.0 + len(name), "x" + name) for name in ("zeros", "random")]
    lines = sweep.group_by_option(read_groups(runs), "distill.alpha")
    assert without_seeds(lines) == {"all": {"xrandom": [56.0], "xzeros": [55.0]}}
    assert report_main(["sweep", "distill.alpha", *runs, "--plot", str(tmp_path / "plot.svg")]) == 0


def test_an_unknown_or_constant_option_is_refused(runs):
    groups = read_groups(runs)
    for absent in ("distill.beta", "seed"):
        with pytest.raises(UserError, match=f"sweep {absent}: nothing that runs are compared by has this name in"):
            sweep.group_by_option(groups, absent)
    with pytest.raises(UserError, match=r"sweep distill\.alpha: it has one value in all runs"):
        sweep.group_by_option(groups[:1], "distill.alpha")


def test_two_runs_with_one_value_and_seed_are_refused(tmp_path):
    runs = [store(tmp_path, f"{teacher}_{alpha}", 0, accuracy, alpha, teachers=(teacher,))
            for teacher, alpha, accuracy in (("one", 0.1, 50.0), ("two", 0.1, 70.0), ("one", 0.5, 52.0))]  # fmt: skip
    with pytest.raises(
        UserError, match=r"two_0\.1/seed_0 has the value 0\.1 and the seed of another run, with another"
    ):
        sweep.group_by_option(read_groups(runs), "distill.alpha")


def test_having_a_teacher_separates_lines_unless_the_teacher_is_on_the_line(tmp_path):
    teacher = store(tmp_path, "teacher", 0, 40.0, 0.5)
    students = [store(tmp_path, f"student_{alpha}", 0, 50.0, alpha, teachers=[teacher]) for alpha in (0.1, 0.9)]
    other = store(tmp_path, "other", 0, 60.0, 0.9, teachers=["runs/of/another/seed_0"])

    def lines(*runs):
        return list(without_seeds(sweep.group_by_option(read_groups(runs), "distill.alpha")).values())

    assert lines(teacher, *students) == [{0.1: [50.0], 0.5: [40.0], 0.9: [50.0]}]
    assert lines(teacher, students[0], other) == [{0.1: [50.0], 0.5: [40.0]}, {0.9: [60.0]}]
    dkt = [store(tmp_path, f"dkt_{alpha}", 0, 70.0, alpha, teachers=teachers, method="dkt")
           for alpha, teachers in ((0.1, []), (0.5, [teacher]), (0.9, [teacher]))]  # fmt: skip
    assert lines(*dkt) == [{0.1: [70.0]}, {0.5: [70.0], 0.9: [70.0]}]


def test_values_are_text_if_any_is_text(tmp_path):
    runs = [store(tmp_path, f"run{i}", 0, 50.0 + i, alpha) for i, alpha in enumerate((2, True, "auto"))]
    lines = sweep.group_by_option(read_groups(runs), "distill.alpha")
    assert without_seeds(lines) == {"all": {"2": [50.0], "auto": [52.0], "true": [51.0]}}


def test_a_sweep_without_a_finished_run_or_with_options_of_other_commands_is_refused(tmp_path, capsys):
    runs = [store(tmp_path, name, 0, 50.0, name, status="running") for name in ("zeros", "random")]
    for more, message in (
        ([], "none of these runs is finished"),
        (["--label-by-folder"], "is an option of table, paper, detections: leave it out of sweep"),
    ):
        assert report_main(["sweep", "distill.alpha", *more, *runs, "--plot", str(tmp_path / "plot.svg")]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert message in line


def test_the_best_value_has_the_highest_mean_over_as_many_seeds_as_the_others(tmp_path, capsys):
    runs = [store(tmp_path, f"kd_{a}", s, value, a) for a, pair in {0.1: (50, 60), 0.5: (58, 54)}.items()
            for s, value in enumerate(map(float, pair))]  # fmt: skip
    assert report_main(["best", "distill.alpha", *runs]) == 0 and capsys.readouterr().out == "0.5\n"
    assert report_main(["best", "distill.alpha", *runs[:3]]) == 2
    message = "its values have finished runs of different seeds"
    assert message in capsys.readouterr().err
    assert report_main(["best", "distill.alpha", runs[0], runs[3]]) == 2 and message in capsys.readouterr().err
    other = store(tmp_path, "dkd", 0, 40.0, 0.1, "dkd")
    assert report_main(["best", "distill.alpha", *runs, other]) == 2
    assert "runs also differ in other settings (distill.name=kd, distill.name=dkd)" in capsys.readouterr().err


def test_the_best_distance_is_the_smallest(tmp_path, capsys):
    runs = [store(tmp_path, f"a_{a}", 0, value, a, lower_is_better=True) for a, value in ((0.1, 256.0), (0.5, 413.0))]
    assert report_main(["best", "distill.alpha", *runs]) == 0 and capsys.readouterr().out == "0.1\n"
    other = store(tmp_path, "b", 0, 50.0, 0.9)
    assert report_main(["best", "distill.alpha", *runs, other]) == 2
    assert "runs have different metrics (accuracy, distance): name those of one" in capsys.readouterr().err


def test_a_branch_is_a_line_of_its_own(tmp_path, capsys):
    runs = [store(tmp_path, f"a_{a}", 0, value, a) for a, value in ((0.1, 50.0), (0.5, 51.0))]
    branch = store(tmp_path, "b", 0, 60.0, 0.9, parent={"path": runs[0], "task": 3})
    lines = without_seeds(sweep.group_by_option(read_groups([*runs, branch]), "distill.alpha"))
    assert sorted(lines.values(), key=len) == [{0.9: [60.0]}, {0.1: [50.0], 0.5: [51.0]}]
    assert report_main(["best", "distill.alpha", *runs, branch]) == 2
    assert "runs also differ in other settings" in capsys.readouterr().err
