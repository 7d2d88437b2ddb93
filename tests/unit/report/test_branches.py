"""Branches in tables and plots: labels name the parent, curves leave the parent's."""

import json

import pytest

from cdl_jax.report import __main__ as report
from cdl_jax.report.groups import folder_names, labels, read_groups
from tests.support.stored_runs import config_with_seed, results, store

ROWS = {"parent": [[80.0], [70.0, 60.0], [60.0, 50.0, 40.0]], "branch": [[80.0], [70.0, 60.0], [90.0, 60.0, 60.0]]}


@pytest.fixture
def runs(tmp_path):
    """A parent and a branch without a changed option, which has other rows."""
    for name, rows in ROWS.items():
        folder = store(tmp_path / name, config_with_seed(0), student=1.0)
        parent = {"path": str(tmp_path / "parent"), "task": 1, "fingerprint": "a", "changes": {}}
        content = {"headline": ["student"], "parent": parent if name == "branch" else None}
        (folder / "results.json").write_text(json.dumps(results({"student": rows}) | content))
    return [tmp_path / name for name in ROWS]


def test_a_branch_is_a_row_of_its_own_that_names_its_parent(runs):
    groups = read_groups(runs)
    assert labels(groups) == ["all", f"parent={runs[0]} after task 1"]
    assert folder_names(groups) == ["parent", f"branch (from {runs[0]} after task 1)"]
    assert [groups[1].runs[0, 0, 0].curve, groups[0].runs[0, 0, 0].curve] == [(80, 65, 70), (80, 65, 50)]


def test_seeds_of_a_branch_are_one_row(tmp_path):
    for seed in (0, 1):
        folder = store(tmp_path / f"branch_{seed}", config_with_seed(seed), student=50.0 + seed)
        content = json.loads((folder / "results.json").read_text())
        content["parent"] = {"path": f"runs/a/seed_{seed}", "task": 1, "fingerprint": str(seed), "changes": {}}
        (folder / "results.json").write_text(json.dumps(content))
    (group,) = read_groups([tmp_path / "branch_0", tmp_path / "branch_1"])
    assert len(group.runs) == 2 and group.runs[1, 0, 0].parent == ("runs/a/seed_*", 1)


def test_the_curve_of_a_branch_begins_at_its_task_on_that_of_its_parent(runs, tmp_path, monkeypatch, capsys):
    drawn = []
    monkeypatch.setattr(report.comparison_plots, "run_curves", lambda curves, metric: drawn.append(curves) or "<svg/>")
    words = ["--plot-curves", str(tmp_path / "curves.svg"), "--label-by-folder"]
    assert report.main([*map(str, runs), *words]) == 0
    (parent, branch) = drawn[0].values()
    assert ([*map(list, parent.seeds)], parent.start) == ([[80, 65, 50]], 0)
    assert ([*map(list, branch.seeds)], branch.start) == ([[80, 65, 70]], 1)
    assert report.main([str(runs[1]), *words]) == 0  # without its parent the curve is complete
    assert [curve.start for curve in drawn[1].values()] == [0]
    monkeypatch.undo()
    assert report.main([*map(str, runs), *words]) == 0
    text = (tmp_path / "curves.svg").read_text()
    assert "tasks learned" in text and "branch (from" in text
    capsys.readouterr()
