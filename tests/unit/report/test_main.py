"""The command line of the report: commands, options, and their former spellings."""

import json

import pytest

from cdl_jax.report import __main__ as command_line
from cdl_jax.report import comparison_plots
from tests.support.stored_runs import CONFIG, config_with_seed, results, store, store_exchanging, store_of_method
from tests.unit.report.test_grid import runs as grid_runs  # noqa: F401
from tests.unit.report.test_sweep import store as store_sweep


def output(words, capsys):
    """Returns the exit code, standard output and standard error of a command."""
    code = command_line.main([str(word) for word in words])
    return code, *capsys.readouterr()


@pytest.fixture
def runs(tmp_path):
    return [store(tmp_path / f"a{seed}", config_with_seed(seed), student=60.0 + seed) for seed in range(2)]


def test_table_is_the_default_command(runs, capsys):
    named = output(["table", *runs], capsys)
    assert named == output(runs, capsys) and named[0] == 0 and "60.50 ± 0.71" in named[1]


@pytest.mark.parametrize(
    ("former", "present"),
    [
        (["RUNS", "--names", "--out", "FILE.md"], ["table", "RUNS", "--label-by-folder", "--out", "FILE.md"]),
        (["--headline", "RUNS"], ["table", "--one-row-per-run", "RUNS"]),
        (["RUNS", "--svg", "FILE.svg"], ["RUNS", "--plot", "FILE.svg"]),
        (["RUNS", "--svg=FILE.svg"], ["RUNS", "--plot=FILE.svg"]),
        (["RUNS", "--traffic", "FILE.svg"], ["RUNS", "--plot-traffic", "FILE.svg"]),
        (["RUNS", "--paper", "v4", "--out", "FILE.csv"], ["paper", "v4", "RUNS", "--out", "FILE.csv"]),
        (["RUNS", "--paper=v4", "--headline"], ["paper", "v4", "RUNS", "--one-row-per-run"]),
        (["--paper", "vkd"], ["paper", "vkd"]),
    ],
)
def test_former_options_of_a_table_do_the_same(former, present, tmp_path, capsys):
    folders = [store(tmp_path / f"run_{i}", config_with_seed(0, pool=i), student=50.0 + i) for i in range(2)]

    def used(words, name):
        replaced = [str(tmp_path / word.replace("FILE", name)) if word.startswith("FILE") else word for word in words]
        replaced = [word.replace("=FILE", f"={tmp_path}/{name}") for word in replaced]
        return [each for word in replaced for each in (folders if word == "RUNS" else [word])]

    before, after = output(used(former, "a"), capsys), output(used(present, "b"), capsys)
    assert before == after
    contents = [[path.read_bytes() for path in tmp_path.glob(f"{name}.*")] for name in ("a", "b")]
    assert contents[0] == contents[1]


def test_former_options_of_a_grid_do_the_same(grid_runs, tmp_path, capsys):  # noqa: F811
    results = []
    for name, words in (
        ("a", ("--grid", "--into", "--svg", "--keep")),
        ("b", ("grid", "--update-page", "--plot", "--export")),
    ):
        page, plot, folder = (tmp_path / f"{name}{ending}" for ending in (".md", ".svg", ""))
        page.write_text("<!-- tables -->\n<!-- end of tables -->\n")
        command, update, draw, export = words
        done = output([command, *grid_runs, update, page, draw, plot, export, folder], capsys)
        copies = {str(path.relative_to(folder)): path.read_text() for path in sorted(folder.rglob("*.json"))}
        results.append((done, page.read_text(), plot.read_text(), copies))
    assert results[0] == results[1] and results[0][0][0] == 0 and len(results[0][3]) > 2


@pytest.mark.parametrize("former", [["--sweep", "distill.alpha"], ["--sweep=distill.alpha"]])
def test_the_former_option_of_a_sweep_does_the_same(former, tmp_path, capsys):
    folders = [store_sweep(tmp_path, f"kd_{alpha}", 0, 50.0, alpha) for alpha in (0.5, 0.25)]
    present = output(["sweep", "distill.alpha", *folders], capsys)
    assert output([*folders, *former], capsys) == output([*former, *folders], capsys) == present
    assert present[0] == 0


def test_options_and_runs_may_alternate(runs, tmp_path, capsys):
    words = [runs[0], "--out", tmp_path / "a.md", runs[1], "--one-row-per-run"]
    assert output(words, capsys) == output([*runs, "--one-row-per-run", "--out", tmp_path / "a.md"], capsys)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--grid", "--sweep", "a.b", "run"], "--grid and --sweep select different tables: name one of them"),
        (["--paper", "a", "--paper", "b"], "--paper is repeated: use it once"),
        (["--paper"], "--paper needs a value"),
        (["sweep", "a.b", "run", "--export", "x"], "--export is an option of grid: leave it out of sweep"),
        (["grid", "run", "--one-row-per-run"], "--one-row-per-run is an option of table, paper: leave it out"),
        (["run", "--one-row-per-rum"], "unknown option --one-row-per-rum: did you mean '--one-row-per-run'?"),
        (["grid"], "the following arguments are required: RUN"),
        (["sweep", "a.b"], "the following arguments are required: RUN"),
        (["table", "run", "--one-row-per-run=1"], "argument --one-row-per-run: ignored explicit argument '1'"),
    ],
)
def test_a_wrong_command_is_one_line(words, message, capsys):
    code, out, err = output(words, capsys)
    assert (code, out, len(err.splitlines())) == (2, "", 1) and message in err


def test_help_lists_every_option(capsys):
    for command, options in {
        "table": (
            "--out",
            "--plot",
            "--plot-curves",
            "--plot-traffic",
            "--one-row-per-run",
            "--label-by-folder",
            "--update-page",
        ),
        "grid": ("--out", "--plot", "--update-page", "--export"),
        "sweep": ("OPTION", "--out", "--plot", "--update-page"),
        "paper": ("NAME", "--out", "--plot"),
    }.items():
        code, out, _ = output([command, "--help"], capsys)
        assert code == 0 and all(option in out for option in options)
        assert not any(former in out.split() for former in ("--svg", "--names", "--headline", "--into", "--keep"))
    code, out, _ = output(["--help"], capsys)
    assert code == 0 and out.strip() == command_line.__doc__.strip()


def test_the_command_line_plots_the_headlines(tmp_path, capsys):
    runs = [store_of_method(tmp_path / name, 0, name, ["network"], network=50.0) for name in ("supervised", "dml")]
    words = [*map(str, runs), "--one-row-per-run", "--plot", str(tmp_path / "a.svg"), "--out", str(tmp_path / "a.md")]
    assert command_line.main(words) == 0
    assert "| method=dml | network | 1 | 50.00 | +0.00 |" in (tmp_path / "a.md").read_text()
    svg = (tmp_path / "a.svg").read_text()
    assert "<!-- method=supervised -->" in svg and svg == comparison_plots.dot_plot(
        {"method=supervised": [50.0], "method=dml": [50.0]}, "accuracy, %; bar: mean"
    )
    capsys.readouterr()
    assert command_line.main([str(runs[0]), "--plot", str(tmp_path / "absent" / "a.svg")]) == 2
    assert capsys.readouterr().err.startswith("cdl_jax: --plot")


def test_numbers_of_detectors_are_called_ap(grid_runs, tmp_path, capsys):  # noqa: F811
    for run in grid_runs:
        path = run / "results.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "metric": "AP"}))
    svgs = {command: tmp_path / f"{command}.svg" for command in ("table", "grid")}
    for command, svg in svgs.items():
        code, out, _ = output([command, *map(str, grid_runs), "--plot", str(svg)], capsys)
        assert code == 0 and "accuracy" not in (out + svg.read_text()).lower(), command
    assert command_line.main(["grid", *map(str, grid_runs), "--out", str(tmp_path / "grid.md")]) == 0
    assert (tmp_path / "grid.md").read_text().startswith("## AP after the last task\n") and "learning_AP" in out
    assert "<!-- AP, %; bar: mean -->" in svgs["table"].read_text()
    assert "<!-- gain of AP over the learner alone, points; bar: mean -->" in svgs["grid"].read_text()
    assert "<!-- AP, %; line: mean -->" in comparison_plots.sweep_plot({"a": {1: {(0, 0, 0): 2.0}}}, "x", "AP")


def test_the_command_line_plots_accuracy_against_traffic(tmp_path, capsys):
    runs = [store_exchanging(tmp_path / "often", seed, 12.5, (60.0 + seed, 62.0)) for seed in (0, 1)]
    never = store_exchanging(tmp_path / "never", 0, 0, (50.0, 51.0), interval=2)
    words = ["--label-by-folder", "--plot-traffic", str(tmp_path / "a.svg")]
    assert command_line.main([*map(str, runs), str(never), *words]) == 0
    svg = (tmp_path / "a.svg").read_text()
    assert svg == comparison_plots.accuracy_vs_traffic(
        {"often": ([12.5, 12.5], [61.0, 61.5]), "never": ([0.0], [50.5])}
    )
    for text in ("often", "never", "megabytes exchanged"):
        assert f"<!-- {text} -->" in svg
    assert comparison_plots.accuracy_vs_traffic({"often": ([12.5, 12.5], [61.0, 62.5])}) != svg
    capsys.readouterr()
    assert command_line.main([str(never), *words]) == 2
    assert "no finished run here has exchanged anything" in capsys.readouterr().err
    assert (
        command_line.main(
            [str(tmp_path / "often" / "seed_0"), str(never.rename(tmp_path / "never" / "often")), *words[:1]]
        )
        == 2
    )
    assert "two rows would be called 'often'" in capsys.readouterr().err


def store_damaged(folder):
    """Creates unreadable runs; returns (path, part of the message) of each.

    A path is absent, a file, or a folder: empty, just begun, damaged, or without one of two seeds.
    """
    folders_and_messages = []
    for name, files, message in (
        ("empty", {}, "holds no results of a run yet"),
        ("begun", {"config.json": json.dumps({"config": CONFIG})}, "holds no results of a run yet"),
        ("torn", {"config.json": json.dumps({"config": CONFIG}), "results.json": '{"name'}, "holds no results"),
        ("binary", {"config.json": json.dumps({"config": CONFIG}), "results.json": "\udc80"}, "holds no results"),
        ("half", {"config.json": '{"config"', "results.json": json.dumps(results())}, "config.json is damaged"),
        ("bare", {"results.json": json.dumps(results())}, "config.json is missing"),
        ("extra_metrics", {"config.json": json.dumps({"config": CONFIG}),
                      "results.json": json.dumps({**results(), "extra_metrics": [5]})}, "holds no results"),
        ("seeds", {"config.json": json.dumps({"config": {**CONFIG, "seed": [0]}}),
                   "results.json": json.dumps(results())}, "holds no results"),
    ):  # fmt: skip
        (folder / name).mkdir()
        for file, text in files.items():
            (folder / name / file).write_text(text, encoding="utf-8", errors="surrogateescape")
        folders_and_messages.append((folder / name, message))
    (folder / "seeds of which one is there").mkdir()
    config = {"config": {**CONFIG, "seeds": [8, 9]}}
    (folder / "seeds of which one is there" / "config.json").write_text(json.dumps(config))
    store(folder / "seeds of which one is there" / "seed_8", config_with_seed(8), student=70.0)
    folders_and_messages.append((folder / "seeds of which one is there", "seed_9 holds no results of a run"))
    (folder / "file").write_text("")
    return [*folders_and_messages, (folder / "file", "not a folder"), (folder / "absent", "not a folder")]


def test_unreadable_runs_are_named_and_the_others_reported(tmp_path, capsys):
    good, bad = store(tmp_path / "good", config_with_seed(0), student=50.0), store_damaged(tmp_path)
    assert (
        command_line.main([str(folder) for folder, _ in bad[:3]] + [str(good)] + [str(folder) for folder, _ in bad[3:]])
        == 0
    )
    out, err = capsys.readouterr()
    assert out.splitlines()[1].split()[:4] == ["all", "student", "2", "60.00"]  # mean of 50 and, in seed_8, 70
    lines = err.splitlines()
    assert len(lines) == len(bad)
    for (folder, message), line in zip(bad, lines, strict=True):
        assert line.startswith("cdl_jax: left out: ") and str(folder) in line and message in line
    assert command_line.main([str(folder) for folder, _ in bad[:5]]) == 2
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 5


def test_the_command_line_writes_a_markdown_table(tmp_path, capsys):
    run = store(tmp_path / "a", config_with_seed(0), student=50.0)
    assert command_line.main([str(run), "--out", str(tmp_path / "table.md")]) == 0
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert lines[:2] == ["## Runs", ""] and lines[3] == "|" + "---|" * 8
    assert lines[4].startswith("| all | student | 1 | 50.00 |")
    assert f"report: {run / 'report.html'}" in capsys.readouterr().out
    assert command_line.main([str(run), "--out"]) == 2


def test_the_ending_selects_html_and_an_unwritable_file_is_refused(tmp_path, capsys):
    run = store(tmp_path / "a", config_with_seed(0), student=50.0)
    assert command_line.main([str(run), "--out", str(tmp_path / "table.html")]) == 0
    text = (tmp_path / "table.html").read_text()
    assert text.startswith("<!doctype html>") and "<tr><td>all</td><td>student</td><td>1</td><td>50.00</td>" in text
    capsys.readouterr()
    assert command_line.main([str(run), "--out", str(tmp_path / "absent" / "table.md")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1
