"""The command line of the report: its commands, its options, and the former spellings of both."""

import pytest

from cdl_jax.report import __main__ as report
from tests.unit.report.test_grid import runs as grid_runs  # noqa: F401
from tests.unit.report.test_report import config_with_seed, store
from tests.unit.report.test_sweep import store as store_sweep


def output(words, capsys):
    """Returns the exit code, standard output and standard error of a command."""
    code = report.main([str(word) for word in words])
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
        (["grid", "run", "--one-row-per-run"], "--one-row-per-run is an option of table and paper: leave it out"),
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
        "table": ("--out", "--plot", "--plot-traffic", "--one-row-per-run", "--label-by-folder", "--update-page"),
        "grid": ("--out", "--plot", "--update-page", "--export"),
        "sweep": ("OPTION", "--out", "--plot", "--update-page"),
        "paper": ("NAME", "--out", "--plot"),
    }.items():
        code, out, _ = output([command, "--help"], capsys)
        assert code == 0 and all(option in out for option in options)
        assert not any(former in out.split() for former in ("--svg", "--names", "--headline", "--into", "--keep"))
    code, out, _ = output(["--help"], capsys)
    assert code == 0 and out.strip() == report.__doc__.strip()
