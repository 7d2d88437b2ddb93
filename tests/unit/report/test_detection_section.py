"""The sections of detectors: tables by hand, curves, and pixels of drawn boxes."""

import base64
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from cdl_jax.errors import UserError
from cdl_jax.evaluation import metrics
from cdl_jax.report import detection_section, plots, run_page
from tests.support import stored_runs

NUMBERS = [{"student/AP": 25.0, "student/AP50": 50.0, "student/AP new": 25.0}]
NUMBERS.append({"student/AP": 30.0, "student/AP50": 55.5, "student/AP new": 40.0, "student/AP old": 20.0})
CLASS_AP = [[10.0, None], [5.0, None, 60.0, 55.0]]


def results():
    """Returns the results of a stream of two tasks."""
    rows = {"student": [[25.0], [20.0, 40.0]]}
    content = stored_runs.results(rows, classes=("cat", "<dog>", "owl", "hat"))
    network = content["networks"]["student"]
    network |= {"metrics": metrics.named_metrics(rows["student"], None), "class_ap": CLASS_AP, "selection": {}}
    network |= {"class_accuracy": None, "confusion": None}
    network["per_task"] = metrics.series(rows["student"], None, None)
    return content | {"metric": "AP", "name": "scenes, vidt", "extra_metrics": NUMBERS, "pairs": {}}


def detections(found=()):
    """Returns detections in one gray image of 200 x 100 pixels, stored at half size."""
    content = io.BytesIO()
    Image.new("RGB", (100, 50), (128, 128, 128)).save(content, "JPEG")
    image = {
        "id": 7, "height": 100, "width": 200, "jpeg": base64.b64encode(content.getvalue()).decode(),
        "objects": [{"class": "<dog>", "box": [50, 40, 100, 50]}], "detections": {"student": list(found)},
    }  # fmt: skip
    curve = [1.0] * 51 + [0.25] * 50
    curves = {"0.5": curve, "0.75": [0.5] * 101, "classes": [curve, None, curve, curve]}
    return {
        "schema": 2, "task": 1, "classes": ["cat", "<dog>", "owl", "hat"], "min_score": 0.3,
        "curves": {"student": curves}, "images": [image],
    }  # fmt: skip


FOUND = ({"class": "cat", "score": 0.876, "box": [20, 30, 60, 40]},)


def test_tables_of_numbers_and_classes():
    heads = ["after task 0", "after task 1"]
    rows = detection_section.number_rows("student", heads, NUMBERS)
    assert rows[:4] == [["student", *heads], ["AP", "25.00", "30.00"], ["AP50", "50.00", "55.50"], ["AP75", "-", "-"]]
    assert rows[12:] == [["AR large", "-", "-"], ["AP old", "-", "20.00"], ["AP new", "25.00", "40.00"]]
    assert len(detection_section.number_rows("student", heads[:1], NUMBERS[:1])) == 1 + 12
    assert detection_section.class_rows(heads, CLASS_AP, ["cat", "dog", "owl", "hat", "not seen"]) == [
        ["AP of the class", *heads], ["cat", "10.00", "5.00"], ["dog", "-", "-"], ["owl", "-", "60.00"],
        ["hat", "-", "55.00"],
    ]  # fmt: skip


def test_the_summary_for_the_terminal():
    numbers = {"student/AP": 30.0, "teacher/AP": 9.0}
    shown = detection_section.summary("student", numbers, [("cat", 5.0), ("dog", None)])
    first, *_, head, cat, dog = shown.splitlines()
    assert first.split() == ["student", "%"] and "AP         30.00" in shown and shown.count("\n") == 12 + 3
    assert (head, cat, dog) == ("AP of the class     %", "cat              5.00", "dog                 -")


def test_the_sections_have_numbers_curves_and_images():
    html = "\n".join(detection_section.html_parts(results(), detections(FOUND)))
    for text in ("all classes", "old classes", "new classes", "IoU 0.75", "recall", "precision", "mean over classes"):
        assert f"{text} -->" in html, text
    assert html.count("<svg") == 3 and html.count("<img ") == 2
    assert "<details" not in html and "<td>&lt;dog&gt;</td><td>-</td><td>-</td>" in html
    assert "a score of at least 0.3" in html and "image 7: true boxes" in html and "student: 1 detection<" in html
    without = "\n".join(detection_section.html_parts(results(), None))
    assert without.count("<svg") == 1 and "<img " not in without and "<td>AP50</td>" in without


def test_two_classes_of_one_name_have_two_curves():
    content = {**detections(), "classes": ["cat", "<dog>", "cat", "hat"]}
    html = "\n".join(detection_section.html_parts(results(), content))
    assert all(f"<!-- {name} -->" in html for name in ("cat (0)", "cat (2)", "hat", "mean over classes"))


def test_many_classes_are_folded():
    many = {**results(), "extra_metrics": [NUMBERS[0]]}
    many["stream"]["tasks"] = [{"classes": [f"c{i}" for i in range(30)]}]
    many["networks"]["student"]["class_ap"] = [[1.0] * 30]
    html = "\n".join(detection_section.html_parts(many, None))
    assert (
        "<details><summary>student: AP of 30 classes<" in html and "<svg" not in html
    )  # one task has no curve over tasks


def test_boxes_are_scaled_with_the_image():
    html = "\n".join(detection_section.html_parts(results(), detections(FOUND)))
    urls = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', html)
    true, found = (np.asarray(Image.open(io.BytesIO(base64.b64decode(url)))).astype(int) for url in urls)
    assert true.shape == found.shape == (180, 360, 3)  # 1.8 of the image's coordinates
    for drawn, (left, top, right, bottom) in ((true, (90, 72, 270, 162)), (found, (36, 54, 144, 126))):
        colored = np.abs(drawn - 128).sum(axis=2) > 60
        row, column = colored[(top + bottom) // 2], colored[:, right - 40]  # beside the label
        assert abs(np.flatnonzero(row)[[0, -1]] - [left, right]).max() <= 2
        assert abs(np.flatnonzero(column)[[0, -1]] - [top, bottom]).max() <= 2
    assert true[110, 90, 1] > 190 > true[110, 90, 0]  # green
    assert found[90, 36, 0] > 190 > found[90, 36, 2]  # orange


def test_classifiers_have_no_such_section():
    assert detection_section.html_parts(stored_runs.results(), None) == []


def test_damaged_files_are_left_out(tmp_path):
    assert detection_section.read(tmp_path) is None
    path = tmp_path / "detections.json"
    for damaged in ("{", "[1]"):
        path.write_text(damaged)
        assert detection_section.read(tmp_path) is None
    path.write_text(json.dumps(detections()))
    assert detection_section.read(tmp_path) == detections()
    path.write_text('{"schema": 99}')
    with pytest.raises(UserError, match="schema 99 is of another version"):
        detection_section.read(tmp_path)


def test_no_number_of_a_detector_is_called_accuracy(tmp_path):
    content = results()
    sections = detection_section.html_parts(content, detections(FOUND))
    for name in ("report", "again"):
        run_page.write_report(tmp_path / f"{name}.html", content, [], stored_runs.STORED, sections)
    page = (tmp_path / "report.html").read_text()
    assert page == (tmp_path / "again.html").read_text()
    body = re.sub(r"<style>.*?</style>|base64,[^\"]*", "", page)
    assert "accuracy" not in body.lower()
    assert "<h2>AP</h2>" in body and "<!-- AP, % -->" in body and "learning_AP ↑</td><td>32.50</td>" in body
    assert "forgetting_cdl ↓</td><td>2.50</td>" in body and "forgetting_max ↓</td><td>5.00</td>" in body
    assert "image_weighted" not in body and "AP of each task&#x27;s classes" in body
    summary = run_page.summary([content])
    assert summary.splitlines()[0].split() == ["last", "average_incremental", "forgetting_cdl", "forgetting_max"]


def test_many_curves_are_gray_except_for_the_bold_one():
    few, many = (
        plots.precision_recall({f"class {i}": [1.0, 0.5] for i in range(n)} | {"mean": [1.0, 0.6]}, "all", "mean")
        for n in (12, 13)
    )
    assert "<!-- class 11 -->" in few and "<!-- mean -->" in few and "#bfbfbf" not in few
    assert "<!-- mean -->" in many and "<!-- class" not in many and many.count("stroke: #bfbfbf") == 13
