"""The report page of one run, with every number computed by hand."""

import copy
import html
import math
import re

import pytest

from cdl_jax.evaluation import metrics
from cdl_jax.report import analysis_section, run_page
from tests.support.stored_runs import ANALYSIS, CONFIG, LINES, results


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    path = tmp_path_factory.mktemp("report") / "report.html"
    run_page.write_report(path, results(), LINES, CONFIG)
    return path


def test_the_page_is_the_same_bytes_for_the_same_run(page, tmp_path):
    run_page.write_report(tmp_path / "again.html", results(), copy.deepcopy(LINES), copy.deepcopy(CONFIG))
    assert (tmp_path / "again.html").read_bytes() == page.read_bytes()
    run_page.write_report(tmp_path / "other.html", results(classes=("x", "y", "z", "w")), LINES, CONFIG)
    assert (tmp_path / "other.html").read_bytes() != page.read_bytes()


def test_the_page_loads_nothing_from_elsewhere(page):
    # Names of XML vocabularies are identifiers that no reader follows, those in an SVG's <metadata> among them.
    text = re.sub(r"<metadata>.*?</metadata>", "", page.read_text(), flags=re.DOTALL)
    names = set(re.findall(r'xmlns(?::\w+)?="([^"]+)"', text))
    elsewhere = set(re.findall(r"https?://[^\s\"'<>)]+", text)) - names
    assert names == {"http://www.w3.org/2000/svg", "http://www.w3.org/1999/xlink"}
    assert elsewhere == set()
    assert not re.search(r"<(script|link|img|iframe|object|embed)\b|@import|url\((?!#)|\ssrc=", text)
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in re.findall(r'href="([^"]*)"', text))


def test_the_page_escapes_names(page):
    text = page.read_text()
    assert "&lt;b&gt;, a &amp; b" in text and "c, &quot;d&quot;" in text and "<b>" not in text
    assert "&#x27;x.py&#x27; &amp;&amp; echo" in text


def test_the_page_shows_the_numbers_of_the_run(page):
    text = page.read_text()
    assert "<td>last</td><td>75.00</td><td>45.00</td></tr>" in text
    assert "<td>forgetting_cdl</td><td>5.00</td><td>5.00</td></tr>" in text
    assert "<td>forward_transfer</td><td>-</td><td>-</td></tr>" in text
    for formula in map(html.escape, metrics.FORMULAS.values()):  # once as a row's tooltip, once in the list
        assert text.count(f'<tr title="{formula}">') == text.count(f"<dd class=quiet>{formula}</dd>") == 1
    for cost in ("1,234 trained, 5,678 frozen", "2.500 GFLOP", "1,000 images/s", "12.3 s", "3 MiB"):
        assert f"<td>{cost}</td>" in text
    assert text.count("Entropy: 0.00, 2.00 bits.") == 2
    assert "learner.pool = 30" in text
    assert "<td>ece_last</td><td>3.00</td><td>3.00</td></tr>" in text
    assert text.count("<td>teacher</td><td>0.00</td><td>10.00</td></tr>") == 1  # forgetting after each task
    assert "<td>student</td><td>45.00</td></tr>" in text and "stream_accuracy, by task: mean over all j" in text
    assert "<td>agreement_last</td><td>75.00</td></tr>" in text and "<td>kl_learning</td><td>0.1875</td></tr>" in text
    # Curves, matrices, agreement and KL, losses, prompt selections.
    assert text.count("<svg") == text.count("</svg>") == 1 + 2 + 2 + 1 + 2


def test_extra_sections_precede_the_training_section(tmp_path):
    run_page.write_report(tmp_path / "report.html", results(), LINES, CONFIG, analysis_section.html_parts(ANALYSIS))
    text = (tmp_path / "report.html").read_text()
    assert text.index("<h2>Teacher and student</h2>") < text.index("<h2>Analysis</h2>") < text.index("<h2>Training")
    assert "<td>student</td><td>45.00</td><td>20.00</td><td>-</td></tr>" in text
    for shown in ("tasks learned since", "0.38", "weight"):
        assert f"<!-- {shown} -->" in text, shown
    assert text.count("<svg") == 8 + 3


def test_a_run_without_a_finished_task_has_a_page(tmp_path):
    nothing = {**results(), "networks": {}, "pairs": {}, "status": "running"}
    run_page.write_report(tmp_path / "report.html", nothing, [], CONFIG)
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
