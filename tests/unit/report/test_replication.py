"""Runs and published results: the cell of a run, and the verdict of reproduction."""

import json
import math
from dataclasses import replace

import pytest

from cdl_jax import config as configs
from cdl_jax import published
from cdl_jax.errors import UserError
from cdl_jax.evaluation.metrics import named_metrics
from cdl_jax.published import Cell, Metric, Table, cdl
from cdl_jax.report import replication
from cdl_jax.report.__main__ import main as report_main
from cdl_jax.report.groups import Group, read_groups

TABLE = published.table("cdl")
FORMER = "unchanged since v2"


def store(folder, last, forgetting=6.0, seed=0, status="finished", changes=(), **choices):
    """Stores a run of two tasks with the config of a cell and `changes`.

    `last` and `forgetting` are the student's final accuracy and forgetting.
    """
    config = cdl.build(**choices)
    config.update_from_flattened_dict({"seed": seed, "student.weights": "s.npz", "teacher.weights": "t.npz"})
    config.update_from_flattened_dict(dict(changes))
    # (A[0,0] - A[1,0]) / 2 is the forgetting, (A[1,0] + A[1,1]) / 2 the accuracy.
    student = {"metrics": named_metrics([[last + 2 * forgetting], [last, last]], [1, 1])}
    teacher = {"metrics": named_metrics([[90.0], [90.0, 90.0]], [1, 1])}
    networks = {"student": student} if choices.get("distill") == "none" else {"teacher": teacher, "student": student}
    folder.mkdir()
    (folder / "results.json").write_text(json.dumps({"status": status, "networks": networks}))
    (folder / "config.json").write_text(json.dumps({"config": config.to_dict()}))
    return folder


def rows(folders, version="", all_cells=False):
    matches = replication.matches(read_groups(folders), TABLE)
    return replication.table(TABLE, matches, version, all_cells=all_cells)[1:]


def test_a_mean_of_three_seeds_within_a_point_or_two_standard_errors_is_reproduced():
    assert replication.verdict(70.0, [70.9, 71.0, 71.1], 1.0) == "yes (+1.00)"
    assert replication.verdict(70.0, [68.8, 68.9, 69.0], 1.0) == "no (-1.10)"
    # Deviations -3, 0, 3: standard error 3 / sqrt 3 = 1.73, twice that 3.46.
    assert replication.verdict(70.0, [70.4, 73.4, 76.4], 1.0) == "yes (+3.40)"
    assert replication.verdict(70.0, [70.5, 73.5, 76.5], 1.0) == "no (+3.50)"
    assert replication.verdict(70.0, [70.0, 70.0], 1.0) == "too few seeds (+0.00)"
    assert replication.verdict(70.0, [], 1.0) == "-"


def test_runs_with_the_config_of_a_cell_match_it(tmp_path):
    seeds = [store(tmp_path / str(s), v, f, seed=s) for s, (v, f) in enumerate([(79, 6.0), (80, 8.0), (81, 10.0)])]
    assert rows(seeds) == [
        ["v3/v4 cifar100 l2p kd vit_b16 vit_s16", "reference=false", "3",
         "79.64", "80.00 ± 1.00", "yes (+0.36)", "6.35", "8.00 ± 2.00", "yes (+1.65)", "77.92 / 8.30 in v2"],
    ]  # fmt: skip
    assert 2 * 2 / math.sqrt(3) > 1.65 > 1
    assert rows(seeds[:2])[0][2:6] == ["2", "79.64", "79.50 ± 0.71", "too few seeds (-0.14)"]


def test_runs_with_and_without_reference_settings_are_separate_rows(tmp_path):
    choices = {"version": "v2", "learner": "l2p", "distill": "dkd", "data": "imagenet_r"}
    plain, quirks = (store(tmp_path / str(r), 62.0, reference=r, **choices) for r in (False, True))
    assert [row[:3] for row in rows([plain, quirks])] == [
        ["v2 imagenet_r l2p dkd vit_b16 vit_s16", "reference=false", "1"],
        ["v2 imagenet_r l2p dkd vit_b16 vit_s16", "reference=true", "1"],
    ]
    coda = store(tmp_path / "coda", 83.0, learner="coda")  # without deviations: both settings are equal
    assert [row[1] for row in rows([coda])] == ["reference=false or reference=true"] * 2
    assert [row[0] for row in rows([coda])] == [f"{v} cifar100 coda kd vit_b16 vit_s16" for v in ("v2", "v3/v4")]


def test_settings_without_effect_on_results_are_ignored(tmp_path):
    changes = {
        "data.path": "elsewhere", "data.num_workers": 3, "devices": 2, "eval.batch_size": 8,
        "eval.forward_transfer": False, "student.remat": True, "device_data_limit_mb": 1, "seed": 77,
        "data.class_order_seed": 5,
    }  # fmt: skip
    assert rows([store(tmp_path / "a", 80.0, changes=changes)])[0][1] == "reference=false"


def test_teacher_settings_are_ignored_for_a_student_without_teacher(tmp_path):
    changes = {"teacher.dim": 64, "cdl.teacher_query": "teacher"}
    alone = store(tmp_path / "a", 86.16, 5.63, learner="coda", distill="none", student="vit_b16", changes=changes)
    (row,) = rows([alone])
    assert row[0] == "v1/v2/v3/v4 cifar100 coda none vit_b16" and row[5] == "too few seeds (+0.00)"
    with_teacher = store(tmp_path / "b", 86.0, learner="coda", student="vit_b16", changes=changes)
    assert rows([with_teacher]) == []


def test_runs_with_other_settings_list_them_and_have_no_verdict(tmp_path):
    changes = {"train.epochs": 5, "augment.flip": False, "student.weights": "random"}
    runs = [store(tmp_path / str(s), 70.0, seed=s, changes=changes, distill="kd_token") for s in range(3)]
    (row,) = rows(runs)
    assert row[:6] == [
        "v3/v4 cifar100 l2p kd_token vit_b16 vit_s16", "other", "3", "81.79", "70.00 ± 0.00", "no verdict",
    ]  # fmt: skip
    assert row[-1] == (
        "other settings than reference=false: augment.flip: True -> False; student.weights: 'pretrained' -> 'random'; "
        "train.epochs: 20 -> 5"
    )
    many = {
        f"optim.{k}": v for k, v in {"learning_rate": 0.1, "eps": 1e-3, "weight_decay": 0.1, "clip_norm": 1.0}.items()
    }
    (row,) = rows([store(tmp_path / "many", 70.0, changes={**changes, **many}, distill="kd_token")])
    assert row[-1].endswith("; and 1 more")


@pytest.mark.parametrize(
    "changes",
    [{"data.name": "glyph_mini"}, {"distill.name": "my_package.my_scheme"}, {"student.depth": 6}, {"method": "other"}],
)
def test_runs_of_other_data_schemes_or_networks_match_no_cell(tmp_path, changes):
    assert rows([store(tmp_path / "a", 70.0, changes=changes)]) == []


@pytest.mark.parametrize("number", range(0, 310, 44))
def test_a_run_with_the_config_of_a_cell_matches_that_cell(tmp_path, number):
    cell = TABLE.cells[number]
    matches = replication.matches(read_groups([store(tmp_path / "a", 70.0, **cell.choices)]), TABLE)
    assert any(match.cell is cell and not match.reference and not match.mismatches for match in matches)


def test_a_complete_table_marks_cells_without_a_run(tmp_path):
    run = store(tmp_path / "a", 72.0, learner="apt", data="imagenet_r", distill="dkd", student="vit_b16")
    v4 = rows([run], "v4", all_cells=True)
    assert len(v4) == 112 and [row[1] for row in v4].count("reference=false") == 1
    assert row_of(v4, "v4 imagenet_r apt dkd vit_l16 vit_b16")[3:6] == ["78.85", "72.00", "too few seeds (-6.85)"]
    assert row_of(v4, "v4 cifar100 l2p dkd vit_b16 vit_s16") == [
        "v4 cifar100 l2p dkd vit_b16 vit_s16", "-", "0", "78.21", "-", "not run", "9.13", "-", "not run", FORMER,
    ]  # fmt: skip
    # v2, v3 and v4 have the same number, and these runs have the settings of v2.
    former = store(tmp_path / "b", 83.0, learner="l2p", version="v2", distill="dkd", student="vit_b16")
    table = rows([former], all_cells=True)
    assert row_of(table, "v2 cifar100 l2p dkd vit_l16 vit_b16")[1] == "reference=false"
    assert row_of(table, "v3/v4 cifar100 l2p dkd vit_l16 vit_b16")[5] == "not run"
    assert [len(rows([], version, all_cells=True)) for version in ("v1", "v2", "v3")] == [42, 72, 84]
    everything = rows([], all_cells=True)
    assert len({row[0] for row in everything}) == len(everything)
    assert sum(len(row[0].split()[0].split("/")) for row in everything) == 310
    assert rows([run], "v2") == []


def row_of(table, label):
    return next(row for row in table if row[0] == label)


def test_unfinished_runs_do_not_count(tmp_path):
    runs = [store(tmp_path / str(s), 79.0 + s, seed=s) for s in range(3)]
    runs.append(store(tmp_path / "3", 10.0, seed=3, status="running"))
    assert rows(runs)[0][2:6] == ["3 (1 unfinished)", "79.64", "80.00 ± 1.00", "yes (+0.36)"]
    assert rows(runs[3:])[0][2:6] == ["0 (1 unfinished)", "79.64", "-", "-"]


def test_a_branch_has_other_settings_in_its_first_tasks(tmp_path):
    groups = read_groups([store(tmp_path / str(s), 79.0 + s, seed=s) for s in range(3)])
    runs = {seed: replace(run, parent=("runs/a", 2)) for seed, run in groups[0].runs.items()}
    matches = replication.matches([Group(groups[0].config, runs)], TABLE)
    assert {match.mismatches for match in matches} == {("parent: none -> runs/a after task 2",)}
    row = replication.table(TABLE, matches, "", all_cells=False)[1]
    assert not any("yes" in cell for cell in row) and "runs/a after task 2" in " ".join(row)


def test_scale_and_offset_convert_accuracies_to_errors(tmp_path):
    error = Metric("student", "last", tolerance=0.5, scale=-1, offset=100)
    precision = Metric("student", "average_precision", tolerance=0.01)
    cell = Cell({"data": "cifar100", "method": "x"}, {"top-1 error": 21.0, "AP": None}, "")
    table = Table("x", "X", "a paper", "somewhere.", {"top-1 error": error, "AP": precision}, (cell,))
    groups = read_groups([store(tmp_path / str(s), 78.0 + s, seed=s) for s in range(3)])
    assert replication.matches(groups, table) == []  # the settings of its cells are unknown
    matches = [replication.Match(groups[0], cell, False, ())]
    assert replication.table(table, matches)[1][3:9] == ["21.00", "21.00 ± 1.00", "yes (+0.00)", "-", "-", "-"]
    assert replication.table(table, [], all_cells=True)[1][0] == "cifar100 x"
    assert "top-1 error 0.5, AP 0.01" in replication.legend(table)


def test_the_command_line_shows_published_tables(tmp_path, capsys):
    run = store(tmp_path / "a", 80.0)
    assert report_main([str(run)]) == 0
    out = capsys.readouterr().out
    assert "CDL, continual distillation learning" in out and "too few seeds (+0.36)" in out and "not run" not in out
    assert "at most max(tolerance, 2 standard errors" in " ".join(out.split())
    assert report_main(["paper", "v2", str(run), "--out", str(tmp_path / "t.md")]) == 0
    text = (tmp_path / "t.md").read_text()
    assert text.startswith("## Runs\n\n| run |") and "\n## CDL, continual distillation learning v2\n" in text
    assert text.count("| not run |") == 2 * 72
    assert report_main(["paper", "cdl", "--out", str(tmp_path / "t.html")]) == 0
    assert (tmp_path / "t.html").read_text().count("<td>not run</td>") == 2 * len(rows([], all_cells=True))


def test_mistakes_are_one_line_errors(tmp_path, capsys):
    for words, message in {
        ("paper", "v5"): "paper v5: did you mean 'v4'",
        ("paper", "cld"): "did you mean 'cdl'",
        ("paper",): "the following arguments are required: NAME",
        ("paper", "v4", str(tmp_path)): "holds no results of a run",
    }.items():
        assert report_main(list(words)) == 2
        err = capsys.readouterr().err
        assert message in err and len(err.splitlines()) == 1
    with pytest.raises(UserError, match="known: cdl, okddip, okddip_ablation, v1, v2, v3, v4, vkd, vkd_detection"):
        replication.choose("imagenet")


def test_all_config_keys_are_compared_except_a_list():
    """Only the keys of a cell's config that this test lists are ignored."""
    config = configs.flatten(cdl.build())
    changed = configs.flatten(cdl.build())
    for key in config:
        changed[key] = "something else"
    compared = {line.split(":")[0] for line in replication.differences(config, changed, cdl)}
    assert {key for key in config if key not in compared} == {
        "seed", "checkpoint.every_steps", "checkpoint.keep", "checkpoint.keep_tasks", "train.on_nonfinite",
        "train.steps_per_call",
        "debug_nans", "log.every_steps", "log.report", "log.to", "devices", "data.num_workers", "data.cache_mb",
        "data.path", "data.class_order_seed", "eval.batch_size", "eval.every_epochs", "eval.forward_transfer",
        "peer_devices", "fsdp_devices", "compilation_cache", "device_data_limit_mb", "seeds", "student.attention",
        "student.remat", "student.weights", "teacher.attention", "teacher.remat", "teacher.weights",
            "student.weights_key", "teacher.weights_key",
    }  # fmt: skip
