"""Names of any characters are escaped in plots, pages, logs, files, in any locale."""

import html
import json
import logging
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from cdl_jax.errors import UserError
from cdl_jax.report import comparison_plots, plots, run_page
from cdl_jax.report.__main__ import main as report_main
from cdl_jax.runtime import console, files
from cdl_jax.runtime.json_lines import JsonLines
from tests.support.stored_runs import CONFIG, LINES, config_with_seed, results, store

ROOT = Path(__file__).parents[3]
# Unclosed and closed formulas, tags, comments, line breaks, quotes, formats, bytes that are not UTF-8, Markdown, globs.
NAMES = ["$x^{$", "$\\frac{$", r"a\$b$c$", "<script>", "-->", "a\nb", "'\"", "100%s %d {0}", "x\udcffy", "a|b", "[ab]*",
         "_hidden", "\x1b[31m", "&amp;", "中文", "~", ""]  # fmt: skip
SHOWN = {"a\nb": "a\\nb", "x\udcffy": "x\\udcffy", "_hidden": " _hidden", "\x1b[31m": "\\x1b[31m"}

PLOTS = {
    "curves": lambda names: plots.accuracy_curves({name: [[50.0], [40.0, 30.0]] for name in names}),
    "rows": lambda names: comparison_plots.dot_plot({name: [1.0, 2.0] for name in names}, names[0]),
    "lines": lambda names: comparison_plots.sweep_plot(dict.fromkeys(names, {0.1: {0: 1.0}, 0.2: {0: 2.0}}), names[0]),
    "words": lambda names: comparison_plots.sweep_plot({"line": {name: {0: 1.0} for name in names if name}}, "option"),
    "traffic": lambda names: comparison_plots.accuracy_vs_traffic({name: ([1.0, 2.0], [3.0, 4.0]) for name in names}),
    "series": lambda names: comparison_plots.line_plot({name: [1.0, 2.0] for name in names}, names[0], "y"),
    "scatter": lambda names: plots.scatter([[0.0, 1.0]] * len(names), names, names[0]),
    "table": lambda names: plots.matrix_plot([[0.5] * len(names)] * len(names), names, names, names[0]),
    "heat map": lambda names: "".join(plots.heat_map([[1.0]], name) for name in names[:1]),
}


def texts(svg):
    """Returns the texts of a plot from matplotlib's comments, in which "--" is split."""
    return re.findall(r"<!-- (.*?) -->", svg, re.DOTALL)


@pytest.mark.parametrize("name", PLOTS)
def test_plots_show_names_as_they_are(name, recwarn):
    svg = PLOTS[name](NAMES)
    ElementTree.fromstring(svg)
    assert "<script" not in svg and not [w for w in recwarn if "underscore" in str(w.message)]
    plotted = texts(svg)
    for each in NAMES if name != "heat map" else NAMES[:1]:
        if each and each != "-->":
            assert html.escape(SHOWN.get(each, each).strip(), quote=False) in map(str.strip, plotted), each


def test_the_page_of_a_run_escapes_names(tmp_path):
    for i in range(0, len(NAMES) - 1, 4):
        names = (NAMES[i : i + 4] + ["b", "c", "d"])[:4]
        content = results(classes=names)
        content["stream"]["name"], content["command"] = names[0], names[1]
        run_page.write_report(
            tmp_path / "report.html", content, LINES, {"config": CONFIG | {"data": {"path": names[2]}}}
        )
        text = (tmp_path / "report.html").read_bytes().decode()
        assert html.escape(", ".join(console.one_line(name) for name in names[:2])) in text
        title = html.escape(f"L2P on {console.one_line(names[0])}, 2 tasks")
        assert f": {title}</title>" in text and f"<h1>{title}</h1>" in text
        assert html.escape(console.one_line(f"data.path = {names[2]!r}")) in text
        assert "<script>" not in text and "\x1b" not in text


def test_folders_of_any_name_are_reported(tmp_path, capsys):
    names = [name for name in NAMES if name and "/" not in name]
    runs = [store(tmp_path / name, config_with_seed(0, pool=i), student=50.0) for i, name in enumerate(names)]
    words = ["--label-by-folder", "--out", str(tmp_path / "t.md"), "--plot", str(tmp_path / "t.svg")]
    assert report_main([*map(str, runs), *words]) == 2
    assert "none of these runs is finished" in capsys.readouterr().err  # a headline is missing
    for run in runs:
        content = json.loads((run / "results.json").read_text())
        (run / "results.json").write_text(json.dumps({**content, "headline": ["student"]}))
    assert report_main([*map(str, runs), *words]) == 0
    out, _ = capsys.readouterr()
    assert len(out.splitlines()) == 1 + 2 * len(names) and "\x1b" not in out
    text = (tmp_path / "t.md").read_bytes().decode()
    assert len([line for line in text.splitlines() if line.startswith("| ")]) == 1 + len(names)
    assert r"| a\|b | student |" in text and r"| \[ab\]\* | student |" in text and "| &lt;script> |" in text
    ElementTree.fromstring((tmp_path / "t.svg").read_bytes())
    begun = tmp_path / "a\nb\x1b[31m begun"
    begun.mkdir()
    assert report_main([str(begun)]) == 2
    assert "a b\\x1b[31m begun holds no results" in capsys.readouterr().err


WRITES = """
import sys
from pathlib import Path
from cdl_jax.report.__main__ import main as report_main
from cdl_jax.runtime import files
from cdl_jax.runtime.json_lines import JsonLines
folder = Path(sys.argv[1])
files.write_atomically(folder / "text", "caf\\u00e9 \\u00b1 \\udcff\\n")
lines = JsonLines(folder / "lines")
lines.write({"step": 1, "name": "\\u00e9\\udcff"})
lines.write({"step": 2})
lines.truncate(1)
sys.exit(report_main(["paper", "cdl", str(folder / "run"), "--out", str(folder / "t.md")]))
"""


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_files_are_utf_8_and_printing_works_in_any_locale(encoding, tmp_path):
    for seed in range(2):
        store(tmp_path / f"é{seed}", config_with_seed(seed, name="中"), student=50.0 + seed)
    (tmp_path / "run").mkdir()
    config = {**config_with_seed(0, name="中"), "seeds": [0, 1]}
    (tmp_path / "run" / "config.json").write_text(json.dumps({"config": config}))
    for seed in range(2):
        (tmp_path / f"é{seed}").rename(tmp_path / "run" / f"seed_{seed}")
    changes = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": encoding}
    done = subprocess.run(
        [sys.executable, "-c", WRITES, str(tmp_path)], capture_output=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **changes},
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, b"")
    pm = "±".encode(encoding, "backslashreplace")
    assert b"50.50 " + pm + b" 0.71" in done.stdout
    assert (tmp_path / "text").read_bytes() == "café ± \\udcff\n".encode()
    assert "50.50 ± 0.71" in (tmp_path / "t.md").read_bytes().decode("utf-8")
    assert JsonLines(tmp_path / "lines").read() == [{"step": 1, "name": "é\udcff"}]


def test_a_failed_write_leaves_no_file(tmp_path):
    def parts():
        yield "half"
        raise RuntimeError

    (tmp_path / "file").write_text("complete")
    with pytest.raises(RuntimeError):
        files.write_atomically(tmp_path / "file", parts())
    assert [path.name for path in tmp_path.iterdir()] == ["file"] and (tmp_path / "file").read_text() == "complete"


def test_messages_and_log_lines_stay_one_line(caplog):
    assert str(UserError("a\nb\x1b[31m\udcff: 100 %s")) == "a b\\x1b[31m\\udcff: 100 %s"
    console.command(lambda: 0)()
    with caplog.at_level(logging.WARNING, "cdl_jax"):
        logging.getLogger("cdl_jax").warning("%s: left out %s", "a\nb", "100%s")
        logging.getLogger("cdl_jax").warning("nothing to fill in: %")
    assert [record.getMessage() for record in caplog.records] == ["a\\nb: left out 100%s", "nothing to fill in: %"]
