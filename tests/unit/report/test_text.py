"""Tables of each report: raw numbers in CSV, escaped text in Markdown and LaTeX."""

import csv
import io
import math

import pytest

from cdl_jax.report import grid, tables
from cdl_jax.report.__main__ import main as report_main
from cdl_jax.report.text import MISSING, Measured, latex, markdown
from tests.support.stored_runs import config_with_seed, store
from tests.unit.report import test_replication, test_sweep
from tests.unit.report.test_grid import runs as grid_runs  # noqa: F401

FOREIGN = "50% of_a & #1 $x^{2}$ ~ \\ {b} <script> | [x]"


def read(path):
    """Returns the rows of a CSV file as {column: text}."""
    return list(csv.DictReader(io.StringIO(path.read_text(encoding="utf-8"))))


def test_csv_has_raw_numbers_in_separate_columns(tmp_path, capsys):
    runs = [
        store(tmp_path / f"a{seed}", config_with_seed(seed), student=value) for seed, value in enumerate((60, 62, 67))
    ]
    runs += [store(tmp_path / f"b{s}", config_with_seed(s, pool=10), student=v) for s, v in ((0, 61.0), (1, 66.0))]
    assert report_main([*map(str, runs), "--out", str(tmp_path / "t.csv")]) == 0
    first, second = read(tmp_path / "t.csv")
    assert list(first)[:6] == ["run", "network", "seeds", "last_mean", "last_std", "last_n"]
    assert (first["run"], first["network"], first["seeds"]) == ("learner.pool=30", "student", "3")
    assert float(first["last_mean"]) == 63.0 and first["last_n"] == "3"
    assert float(first["last_std"]) == pytest.approx(math.sqrt(13), abs=1e-12)  # not rounded
    assert first["last, Δ vs. first run_mean"] == ""
    assert float(second["last, Δ vs. first run_mean"]) == 2.5
    assert float(second["last, Δ vs. first run_standard_error"]) == pytest.approx(1.5)
    assert second["last, Δ vs. first run_n"] == "2"
    assert report_main([str(runs[0]), f"--out={tmp_path / 'one.csv'}"]) == 0
    (only,) = read(tmp_path / "one.csv")
    assert (only["last_mean"], only["last_std"], only["last_n"]) == ("60.0", "", "1")
    capsys.readouterr()


def test_csv_of_a_grid_holds_both_tables(grid_runs, tmp_path, capsys):  # noqa: F811
    assert report_main(["grid", *map(str, grid_runs), "--out", str(tmp_path / "t.csv")]) == 0
    rows = read(tmp_path / "t.csv")
    assert {row["table"] for row in rows} == {"Accuracy after the last task", "All measures"}
    (row,) = [row for row in rows if row["name"] == "kd"]
    # Differences 3, 4, 2 to the learner alone: mean 3, standard error 1 / sqrt 3.
    assert float(row["l2p_mean"]) == 55.0 and float(row["l2p_gain_mean"]) == 3.0 and row["l2p_gain_n"] == "3"
    assert float(row["l2p_gain_standard_error"]) == pytest.approx(1 / math.sqrt(3))
    assert float(row["l2p_gain_p"]) == pytest.approx(grid.p_value([3.0, 4.0, 2.0]), rel=1e-9)
    (row,) = [row for row in rows if (row["learner"], row["scheme"]) == ("l2p", "kd")]
    assert (row["seeds"], float(row["forgetting_max_mean"]), float(row["gain_mean"])) == ("3", 10.0, 3.0)
    assert float(row["gap closed"]) == pytest.approx(3 / 29)
    capsys.readouterr()


def test_csv_of_a_sweep_has_columns_for_each_value(tmp_path, capsys):
    runs = [test_sweep.store(tmp_path, f"kd_{a}", s, 50 + 10 * a + s, a) for a in (0.5, 0.25) for s in range(2)]
    assert report_main(["sweep", "distill.alpha", *runs, "--out", str(tmp_path / "t.csv")]) == 0
    (row,) = read(tmp_path / "t.csv")
    assert {name: float(value) for name, value in row.items() if name != "distill.alpha"} == {
        "0.25_mean": 53.0, "0.25_std": pytest.approx(math.sqrt(0.5)), "0.25_n": 2.0,
        "0.5_mean": 55.5, "0.5_std": pytest.approx(math.sqrt(0.5)), "0.5_n": 2.0,
    }  # fmt: skip
    capsys.readouterr()


def test_csv_and_latex_of_a_published_table(tmp_path, capsys):
    finals = [(79, 6.0), (80, 8.0), (81, 10.0)]
    runs = [test_replication.store(tmp_path / str(s), v, f, seed=s) for s, (v, f) in enumerate(finals)]
    words = ["paper", "v4", *map(str, runs), "--out"]
    assert report_main([*words, str(tmp_path / "t.csv")]) == report_main([*words, str(tmp_path / "t.tex")]) == 0
    rows = [row for row in read(tmp_path / "t.csv") if row["settings"] == "reference=false"]
    (row,) = rows
    metric = next(iter(test_replication.TABLE.metrics))
    assert float(row[metric]) == 79.64 and float(row[f"{metric} ours_mean"]) == 80.0
    assert row[f"{metric} reproduced?"] == "yes"
    assert float(row[f"{metric} reproduced?_difference"]) == pytest.approx(0.36)
    text = (tmp_path / "t.tex").read_text()
    assert r"80.00 $\pm$ 1.00 & yes (+0.36)" in text and "±" not in text
    capsys.readouterr()


def test_latex_is_escaped_and_has_as_many_cells_as_columns(tmp_path, capsys):
    rows = [["run", "note"], [FOREIGN, Measured("-1.50 ± 0.25", {"mean": -1.5})], ["[a]", "-"]]
    text = latex([("T", rows, "100 %")])
    assert (
        r"50\% of\_a \& \#1 \$x\textasciicircum{}\{2\}\$ \textasciitilde{} \textbackslash{} \{b\} "
        r"\textless{}script\textgreater{} \textbar{} {[}x{]} & $-$1.50 $\pm$ 0.25 \\"
    ) in text.splitlines()
    assert r"{[}a{]} & - \\" in text.splitlines()  # "[" after a row's end would be an option
    assert r"\caption{T. 100 \%}" in text and r"\begin{tabular}{ll}" in text
    assert text.count("{") == text.count("}")
    run = store(tmp_path / "a", config_with_seed(0), student=50.0)
    assert report_main([str(run), "--out", str(tmp_path / "t.tex")]) == 0
    text = (tmp_path / "t.tex").read_text()
    assert r"run & network & seeds & last & average\_incremental" in text
    assert text.startswith("\\begin{table}\n\\centering\n\\caption{Runs}\n\\begin{tabular}{lrrrrrrr}\n\\hline\n")
    capsys.readouterr()


def test_markdown_is_escaped():
    text = markdown([("T", [["run", "n"], [FOREIGN, "1"], ["a\nb \udcff `c` a_b _d_ p < 0.1 &amp; &", "2"]], "")])
    assert text.splitlines() == [
        "## T", "", "| run | n |", "|---|---|",
        r"| 50% of_a & #1 \$x^{2}\$ \~ \\ {b} &lt;script> \| \[x\] | 1 |",
        r"| a\\nb \\udcff \`c\` a_b \_d\_ p < 0.1 &amp;amp; & | 2 |",
    ]  # fmt: skip


def test_special_characters_in_names_are_escaped_in_each_format(tmp_path, capsys):
    name = FOREIGN.replace("/", "") + ' \n"q",'
    runs = [store(tmp_path / each, config_with_seed(0, pool=len(each)), student=50.0) for each in (name, "plain")]
    assert report_main([*map(str, runs), "--label-by-folder"]) == 0
    assert len([line for line in capsys.readouterr().out.splitlines() if "<script>" in line and "50.00" in line]) == 1
    for ending, shown in {
        "md": r"\$x^{2}\$ \~ \\ {b} &lt;script> \| \[x\] \\n",
        "html": "$x^{2}$ ~ \\ {b} &lt;script&gt; | [x]",
        "tex": r"\textless{}script\textgreater{} \textbar{} {[}x{]} \textbackslash{}n\textquotedbl{}q",
    }.items():
        assert report_main([*map(str, runs), "--label-by-folder", "--out", str(tmp_path / f"t.{ending}")]) == 0
        text = (tmp_path / f"t.{ending}").read_text(encoding="utf-8")
        assert text.count(shown) == (2 if ending == "html" else 1), text  # a page has a list of the runs too
        assert ending != "html" or "<script>" not in text
    assert report_main([*map(str, runs), "--label-by-folder", "--out", str(tmp_path / "t.csv")]) == 0
    assert [row["run"] for row in read(tmp_path / "t.csv")] == [name, "plain"]
    capsys.readouterr()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--out", "t.xlsx"], "--out t.xlsx must end in .md, .html, .htm, .csv or .tex"),
        (["--out", "t"], "--out t must end in"),
        (["--plot", "t.png"], "--plot t.png must end in .svg"),
        (["--plot-traffic=t.pdf"], "--plot-traffic t.pdf must end in .svg"),
        (["--update-page", "t.csv"], "--update-page t.csv must end in .md, .html or .htm"),
        (["--outt", "t.csv"], "unknown option --outt"),
        (["--out", "a.md", "--out=b.md"], "--out is repeated"),
        (["--out"], "--out needs a value"),
    ],
)
def test_wrong_options_are_one_line_errors_before_anything_is_read(words, message, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert report_main(["absent", *words]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and message in err
    assert list(tmp_path.iterdir()) == []


def test_endings_may_be_in_capitals(tmp_path, capsys):
    run = store(tmp_path / "a", config_with_seed(0), student=50.0)
    assert report_main([str(run), "--out", str(tmp_path / "T.CSV")]) == 0
    assert read(tmp_path / "T.CSV")[0]["last_mean"] == "50.0"
    capsys.readouterr()


def test_a_cell_is_text_with_numbers():
    cell = tables.format_mean_std([1.0, 3.0])
    assert cell == "2.00 ± 1.41" and cell.numbers == {"mean": 2.0, "std": pytest.approx(math.sqrt(2)), "n": 2}
    assert tables.format_mean_std([]) == MISSING
