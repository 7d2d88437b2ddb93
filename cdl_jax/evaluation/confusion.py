"""Counts predictions by true class, and derives the accuracy of each class.

results.json stores the counts by row: `rows[i]` is `{str(j): images of class i that were predicted as class j}`,
without zeros. So the file grows with the number of mistakes, not with the square of the number of classes.
"""

from collections.abc import Mapping, Sequence

import numpy as np

Rows = list[dict[str, int]]


def count_predictions(labels: np.ndarray, predictions: np.ndarray, num_labels: int, num_classes: int) -> np.ndarray:
    """Counts images by class and prediction.

    >>> count_predictions(np.array([0, 0, 1, -1]), np.array([0, 2, 2, 1]), 2, 3).tolist()
    [[1, 0, 1], [0, 0, 1]]

    Args:
      labels: int `[n]`. Images whose label is not in `[0, num_labels)`, such as padding, are not counted.
      predictions: int `[n]`, in `[0, num_classes)`.
      num_labels: classes that images have.
      num_classes: classes that can be predicted.

    Returns:
      int64 `[num_labels, num_classes]`.
    """
    counted = (labels >= 0) & (labels < num_labels)
    cells = labels[counted].astype(np.int64) * num_classes + predictions[counted]
    return np.bincount(cells, minlength=num_labels * num_classes).reshape(num_labels, num_classes)


def class_accuracy(counts: np.ndarray) -> list[float | None]:
    """Returns the accuracy of each class in percent; None without images.

    >>> class_accuracy(np.array([[3, 1, 0], [0, 0, 0]]))
    [75.0, None]

    Args:
      counts: see `count_predictions`.
    """
    correct, images = np.diagonal(counts), counts.sum(axis=1)
    return [100 * float(c) / float(n) if n else None for c, n in zip(correct, images, strict=True)]


def to_rows(counts: np.ndarray) -> Rows:
    """Returns counts as results.json stores them.

    >>> to_rows(np.array([[3, 0, 1], [0, 2, 0]]))
    [{'0': 3, '2': 1}, {'1': 2}]
    """
    return [{str(j): int(row[j]) for j in np.flatnonzero(row)} for row in counts]


def from_rows(rows: Sequence[Mapping[str, int]], num_classes: int) -> np.ndarray:
    """Returns the counts of rows of results.json, int64 `[len(rows), num_classes]`.

    >>> from_rows([{"0": 3, "2": 1}, {"1": 2}], 3).tolist()
    [[3, 0, 1], [0, 2, 0]]
    """
    counts = np.zeros((len(rows), num_classes), np.int64)
    for i, row in enumerate(rows):
        for j, images in row.items():
            counts[i, int(j)] = images
    return counts
