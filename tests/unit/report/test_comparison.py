"""The page that compares runs, with every number computed by hand."""

import re
from dataclasses import replace

from cdl_jax.report import comparison, tables
from cdl_jax.report.__main__ import main as report_main
from cdl_jax.report.groups import TABLE_METRICS, Group, Run
from tests.support.stored_runs import store_of_method


def group(pool, folder, values, finished=True):
    runs = {
        (seed, 0, 0): Run(
            folder / str(seed), finished, {"net": dict.fromkeys(TABLE_METRICS, value)}, ("net",), curve=(90.0, value)
        )
        for seed, value in enumerate(values)
    }
    return Group({"learner.pool": pool}, runs)


def test_differences_are_paired_by_seeds(tmp_path):
    groups = [group(1, tmp_path, [50.0, 60.0, 70.0]), group(2, tmp_path, [51.0, 62.0, 73.0])]
    rows = comparison.differences(groups, ["a", "b"])
    assert rows[1:] == [["b", "3", "+2.00", "0.58", "0.074"]]  # t = 2 sqrt(3), 2 degrees of freedom
    assert comparison.differences([groups[0], group(2, tmp_path, [51.0], finished=False)], ["a", "b"])[1:] == []
    assert comparison.differences([groups[0], group(2, tmp_path, [51.0])], ["a", "b"])[1:] == [
        ["b", "1", "+1.00", "-", "-"]
    ]


def test_numbers_of_another_metric_have_no_difference(tmp_path):
    distances = {seeds: replace(run, metric="distance") for seeds, run in group(2, tmp_path, [300.0]).runs.items()}
    groups = [group(1, tmp_path, [50.0]), Group({"learner.pool": 2}, distances), group(3, tmp_path, [51.0])]
    assert [row[:3] for row in comparison.differences(groups, "abc")[1:]] == [["c", "1", "+1.00"]]
    assert [row[4] for row in tables.headlines(groups)[1:]] == ["-", "-", "+1.00"]
    differences = {row[0]: row[7] for row in tables.table(groups, "abc")[1:]}
    assert tables.table(groups, "abc")[0][7] == "last, Δ vs. first run" and differences == {
        "a": "-",
        "b": "-",
        "c": "+1.00",
    }


def test_the_page_has_curves_differences_and_links(tmp_path):
    groups = [group(1, tmp_path / "x y", [50.0, 60.0]), group(2, tmp_path / "z", [51.0, 63.0])]
    page = "".join(comparison.html_parts(groups, ["a", "b"], tmp_path / "page.html"))
    assert page.count("<svg") == 1 and 'download="curves_of_all_runs.csv"' in page
    assert re.findall(r'href="([^"]*report.html)"', page) == [
        "x%20y/0/report.html", "x%20y/1/report.html", "z/0/report.html", "z/1/report.html",
    ]  # fmt: skip


def test_the_command_writes_the_page(tmp_path, capsys):
    runs = [
        store_of_method(tmp_path / f"{method}_{seed}", seed, method, ["net"], net=40.0 + seed * gain)
        for method, gain in (("supervised", 1), ("lwf", 3))
        for seed in (0, 1)
    ]
    assert report_main([*map(str, runs), "--out", str(tmp_path / "page.html")]) == 0
    text = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "<h2>Differences to the first run</h2>" in text and "<td>+1.00</td><td>1.00</td><td>0.5</td>" in text
    assert "<svg" not in text  # runs of one task have no curve
    assert 'href="supervised_0/report.html">seed 0</a>' in text
    capsys.readouterr()
