"""Predictions as a table, JSON and CSV."""

import csv
import io
import json

import numpy as np
import pytest

from cdl_jax.evaluation.predictions import BoxPredictions, ClassPredictions
from cdl_jax.report import predictions

NAMES = ("-", 'a "b", c', "d")
CLASSES = ClassPredictions(np.log(np.array([[0.5, 0.3, 0.2], [0.1, 0.2, 0.7]])), NAMES)
BOXES = [
    BoxPredictions(
        np.array([[1.0, 2.0, 3.25, 4.0], [0, 0, 1, 1]]), np.array([0.75, 0.5]), np.array([7, 3]), ("d", "-")
    ),
    BoxPredictions(np.zeros((0, 4)), np.zeros(0), np.zeros(0, int), ()),
]


def test_classes_are_listed_by_probability():
    found = predictions.entries(["x.png", "y.png"], CLASSES, 2)
    assert [item["class"] for item in found[0]["classes"]] == ["-", 'a "b", c']
    assert found[1]["classes"][0] == {"rank": 1, "class": "d", "probability": pytest.approx(0.7)}
    lines = predictions.table(found).splitlines()
    assert lines[0].split() == ["file", "rank", "class", "probability"] and len(lines) == 5
    assert lines[1].split() == ["x.png", "1", "-", "0.5000"]
    content = json.loads(predictions.render(".json", found, {"network": "student"}))
    assert content == {"network": "student", "images": found}
    rows = list(csv.reader(io.StringIO(predictions.render(".csv", found, {}))))
    assert rows[1][:3] == ["x.png", "1", "-"] and rows[2][2] == NAMES[1] and float(rows[3][3]) == pytest.approx(0.7)


def test_boxes_are_listed_by_score():
    found = predictions.entries(["x.png", "y.png"], BOXES, 5)
    assert found[0]["boxes"][0] == {
        "class": "d", "class_id": 7, "score": 0.75, "x": 1.0, "y": 2.0, "width": 3.25, "height": 4.0
    }  # fmt: skip
    assert found[1] == {"file": "y.png", "boxes": []}
    assert predictions.table(found).splitlines()[1].split() == ["x.png", "d", "0.7500", "1.0", "2.0", "3.2", "4.0"]
    assert predictions.render(".csv", found, {}).splitlines()[0] == "file,class,score,x,y,width,height"
    assert [len(entry["boxes"]) for entry in predictions.entries(["x.png", "y.png"], BOXES, 1)] == [1, 0]
    assert predictions.table(predictions.entries(["y.png"], BOXES[1:], 1)) == "no boxes"
