"""Renders predictions as a table, JSON or CSV."""

import csv
import io
import json
from collections.abc import Mapping, Sequence
from typing import Any

from cdl_jax.evaluation.predictions import BoxPredictions, ClassPredictions
from cdl_jax.report import text

SUFFIXES = (".json", ".csv")
_DIGITS = {"probability": 4, "score": 4}  # decimals in the table
_COLUMNS = {"classes": ("rank", "class", "probability"), "boxes": ("class", "score", "x", "y", "width", "height")}

Entry = dict[str, Any]


def entries(files: Sequence[str], found: ClassPredictions | Sequence[BoxPredictions], top_k: int) -> list[Entry]:
    """Returns the predictions of each image as JSON values.

    >>> import numpy as np
    >>> entries(["a.png"], ClassPredictions(np.zeros((1, 2)), ("cat", "dog")), 1)
    [{'file': 'a.png', 'classes': [{'rank': 1, 'class': 'cat', 'probability': 0.5}]}]

    Args:
      files: names of the images.
      found: predictions of a classifier, or the boxes of each image.
      top_k: number of classes or boxes of an image.

    Returns:
      `file`, and `classes` with `rank`, `class` and `probability`, or `boxes` with `class`, `class_id`, `score`, `x`,
      `y`, `width` and `height`.
    """
    if isinstance(found, ClassPredictions):
        return [
            {"file": file, "classes": [_class_entry(rank, *pair) for rank, pair in enumerate(pairs, start=1)]}
            for file, pairs in zip(files, found.top(top_k), strict=True)
        ]
    return [{"file": file, "boxes": _box_entries(boxes.top(top_k))} for file, boxes in zip(files, found, strict=True)]


def table(found: Sequence[Entry]) -> str:
    """Returns a table for the terminal, with one line for each class or box."""
    head = _head(found)
    rows = [_shown(head, row) for row in _rows(found)]
    return text.aligned([head, *rows]) if rows else "no boxes"


def render(suffix: str, found: Sequence[Entry], about: Mapping[str, Any]) -> str:
    """Returns the content of a file of predictions.

    Args:
      suffix: ".json", or ".csv" with one line for each class or box.
      found: of `entries`.
      about: what predicted, for JSON.
    """
    if suffix == ".json":
        return json.dumps({**about, "images": list(found)}, indent=1, ensure_ascii=False) + "\n"
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows([_head(found), *_rows(found)])
    return file.getvalue()


def _class_entry(rank, name, probability) -> Entry:
    return {"rank": rank, "class": name, "probability": probability}


def _box_entries(boxes) -> list[Entry]:
    columns = zip(boxes.class_names, boxes.class_ids.tolist(), boxes.scores.tolist(), boxes.boxes.tolist(), strict=True)
    return [
        {"class": name, "class_id": number, "score": score, "x": x, "y": y, "width": width, "height": height}
        for name, number, score, (x, y, width, height) in columns
    ]


def _kind(found):
    return "boxes" if "boxes" in found[0] else "classes"


def _head(found):
    return ["file", *_COLUMNS[_kind(found)]]


def _rows(found):
    """Returns a row for each class or box: the file and the values of the columns."""
    kind = _kind(found)
    return [[entry["file"], *(item[name] for name in _COLUMNS[kind])] for entry in found for item in entry[kind]]


def _shown(head, row):
    """Returns the cells of a row for the terminal; lengths in pixels have one decimal."""
    return [
        text.number(cell, _DIGITS.get(name, 1)) if isinstance(cell, float) else str(cell)
        for name, cell in zip(head, row, strict=True)
    ]
