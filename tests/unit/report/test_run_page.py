"""The report page of one run, with every number computed by hand."""

import base64
import copy
import html
import math
import re

import pytest

from cdl_jax.evaluation import metrics
from cdl_jax.report import analysis_section, run_page
from tests.support.stored_runs import ANALYSIS, CONFIG, LINES, STORED, results


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    run_page.write_report(path, results(), LINES, STORED)
    return path


def test_the_page_is_the_same_bytes_for_the_same_run(page):
    folder = page.parent
    run_page.write_report(folder / "again.html", results(), copy.deepcopy(LINES), copy.deepcopy(STORED))
    assert (folder / "again.html").read_bytes() == page.read_bytes()
    run_page.write_report(folder / "other.html", results(classes=("x", "y", "z", "w")), LINES, STORED)
    assert (folder / "other.html").read_bytes() != page.read_bytes()


def test_the_page_loads_nothing_from_elsewhere(page):
    # Names of XML vocabularies are identifiers that no reader follows, those in an SVG's <metadata> among them.
    text = re.sub(r"<metadata>.*?</metadata>", "", page.read_text(), flags=re.DOTALL)
    names = set(re.findall(r'xmlns(?::\w+)?="([^"]+)"', text))
    elsewhere = set(re.findall(r"https?://[^\s\"'<>)]+", text)) - names
    assert names == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert elsewhere == set()
    assert not re.search(r"<(script|link|img|iframe|object|embed)\b|@import|url\((?!#)|\ssrc=", text)
    files = {"results.json", "metrics.jsonl", "config.json", "checkpoints/"}  # of the run's own folder
    data = ("#", "data:image/png;base64,", "data:image/svg+xml;base64,", "data:text/csv;base64,")
    data += ("data:application/x-tex;base64,",)
    assert {target for target in re.findall(r'href="([^"]*)"', text) if not target.startswith(data)} == files


def saved(text, name):
    """Returns the content of a file that a link of the page saves."""
    (content,) = re.findall(rf'download="{re.escape(name)}" href="data:[\w/+-]+;base64,([^"]*)"', text)
    return base64.b64decode(content).decode()


def test_each_figure_and_table_can_be_saved(page):
    text = page.read_text()
    rows = saved(text, "accuracy_curves.csv").splitlines()
    assert rows[0] == 'panel,name,tasks learned,"accuracy, %",value'
    assert "tasks learned so far,student,2,45," in rows and "tasks learned so far,teacher,2,75," in rows
    assert 'tasks learned so far,"student, worst task",2,40,' in rows
    assert saved(text, "student_accuracy_matrix.csv").splitlines()[1:] == [
        "student,,0,0,60", "student,,0,1,50", "student,,1,1,40",
    ]  # fmt: skip
    assert saved(text, "student_accuracy_by_task.csv").splitlines()[1:] == [
        "student,task 0,1,60,", "student,task 0,2,50,", "student,task 1,2,40,",
    ]  # fmt: skip
    assert (
        "student,,<b>,c,25" in saved(text, "student_confusion.csv").splitlines()
    )  # 1 of 4 images of c is taken for <b>
    assert saved(text, "losses.svg").startswith("<svg")
    assert "last ↑,75.00,45.00" in saved(text, "metrics.csv")
    assert r"\begin{tabular}{lrr}" in saved(text, "metrics.tex")
    assert text.count("<svg") == text.count('.svg"') and text.count("<table>") == text.count('.tex"') + 1  # origin


def test_the_page_begins_with_what_was_trained_and_the_headline(page):
    text = page.read_text()
    assert "<h1>L2P on toy, 2 tasks</h1>" in text
    tiles = re.findall(
        r"<div class=tile>(.*?) ([↑↓])<span class=value>(.*?)</span><span class=quiet>(.*?)</span>", text
    )
    assert ("Accuracy after the last task", "↑", "45.00", "student, teacher 75.00") in tiles
    assert ("Forgetting from the best", "↓", "10.00", "student, teacher 10.00") in tiles
    assert ("Agreement with the teacher", "↑", "75.00", "student") in tiles


def test_the_page_shows_where_the_run_came_from(tmp_path):
    stored = {**STORED, "config": {**CONFIG, "cdl": {"teacher_runs": ["runs/a b"]}}}
    content = {**results(), "parent": {"path": "runs/b", "task": 1, "fingerprint": "", "changes": {}}}
    run_page.write_report(tmp_path / "report.html", content, LINES, stored)
    text = (tmp_path / "report.html").read_text()
    for fact in ("2026-11-29T10:00:00+00:00", "0123abcd", "1 x cpu", "jax 0.10.2"):
        assert f"<td class=text>{fact}</td>" in text
    assert re.search(r'<a href="[^"]*runs/a%20b/report.html">runs/a b</a>', text)
    assert re.search(r'<a href="[^"]*runs/b/report.html">runs/b after task 1</a>', text)


def test_classes_show_their_accuracy(page):
    text = page.read_text()
    assert "<td>a &amp; b</td><td>0</td><td>85.00</td><td>85.00</td>" in text
    assert "<td>c</td><td>1</td><td>60.00</td><td>60.00</td>" in text


def test_the_page_escapes_names(page):
    text = page.read_text()
    assert "&lt;b&gt;, a &amp; b" in text and "c, &quot;d&quot;" in text and "<b>" not in text
    assert "&#x27;x.py&#x27; &amp;&amp; echo" in text


def test_the_page_shows_the_numbers_of_the_run(page):
    text = page.read_text()
    assert "last ↑</td><td>75.00</td><td>45.00</td></tr>" in text
    assert "forgetting_cdl ↓</td><td>5.00</td><td>5.00</td></tr>" in text
    assert "forward_transfer" not in text  # not measured
    measured = [name for name in metrics.FORMULAS if name != "forward_transfer"]
    for formula in (html.escape(metrics.FORMULAS[name]) for name in measured):  # a row's tooltip, and in the list
        assert text.count(f'<td title="{formula}">') == text.count(f"<dd class=quiet>{formula}</dd>") == 1
    for cost in ("1,234 trained, 5,678 frozen", "2.500 GFLOP", "1,000 images/s", "12.3 s", "3 MiB"):
        assert f"<td>{cost}</td>" in text
    assert text.count("Entropy: 0.00, 2.00 bits.") == 2
    assert "learner.pool = 30" in text
    assert "ece_last ↓</td><td>3.00</td><td>3.00</td></tr>" in text
    assert text.count("<td>teacher</td><td>0.00</td><td>10.00</td></tr>") == 1  # forgetting after each task
    assert "<td>student</td><td>45.00</td></tr>" in text and "<h3>stream_accuracy</h3>" in text
    assert "agreement_last ↑</td><td>75.00</td></tr>" in text and "kl_learning ↓</td><td>0.1875</td></tr>" in text
    # Curves, curves of tasks, matrices, confusion, agreement and KL, losses and learning rates, prompt selections.
    assert text.count("<svg") == text.count("</svg>") == 1 + 2 + 2 + 2 + 2 + 2 + 2


def test_extra_sections_precede_the_training_section(tmp_path):
    run_page.write_report(tmp_path / "report.html", results(), LINES, STORED, analysis_section.html_parts(ANALYSIS))
    text = (tmp_path / "report.html").read_text()
    assert text.index("<h2>Teacher and student</h2>") < text.index("<h2>Analysis</h2>") < text.index("<h2>Training")
    assert "<td>student</td><td>45.00</td><td>20.00</td><td>-</td></tr>" in text
    for shown in ("tasks learned since", "0.38", "weight"):
        assert f"<!-- {shown} -->" in text, shown
    assert text.count("<svg") == 13 + 3


def test_a_run_without_a_finished_task_has_a_page(tmp_path):
    nothing = {**results(), "networks": {}, "pairs": {}, "status": "running"}
    run_page.write_report(tmp_path / "report.html", nothing, [], STORED)
    text = (tmp_path / "report.html").read_text()
    assert "running" in text and "<svg" not in text and "<h2>Metrics</h2>" not in text


def test_entropy_is_in_bits():
    assert run_page.entropy([3, 3, 3, 3]) == 2.0
    assert run_page.entropy([0, 7, 0]) == run_page.entropy([0, 0]) == 0.0
    assert run_page.entropy([1, 3]) == pytest.approx(2 - 0.75 * math.log2(3))


def test_the_summary_has_one_line_per_network():
    lines = run_page.summary([results()]).splitlines()
    assert lines[0].split() == ["last", "average_incremental", "forgetting_cdl", "forgetting_max", "ece_last"]
    assert lines[1].split() == ["teacher", "75.00", "82.50", "5.00", "10.00", "3.00"]
    assert lines[2].split() == ["student", "45.00", "52.50", "5.00", "10.00", "3.00"]
    assert len({len(line) for line in lines[:3]}) == 1
    assert lines[3:] == ["teacher/student: agreement 75.00 %, KL(teacher || student) 0.3750 nats"]
