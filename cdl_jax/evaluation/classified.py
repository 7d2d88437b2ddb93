"""Measures a classifier from its logits, by task and by class."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from cdl_jax.evaluation import confusion


def measure(logits: np.ndarray, labels: np.ndarray, task_sizes: Sequence[int]) -> dict[str, Any]:
    """Returns accuracies in percent; None where a task or class has no images.

    >>> measure(np.array([[2.0, 1.0, 3.0], [0.0, 1.0, 0.0]]), np.array([0, 1]), (2, 1))["accuracy"]
    [50.0, None]

    Args:
      logits: float `[n, classes]`, columns in the class order of the network; -inf for classes that are excluded.
      labels: int `[n]`, columns of the true classes.
      task_sizes: number of classes of each task that was trained.

    Returns:
      JSON: `images`, `accuracy` and `task_incremental` of each task; `last_image_weighted` and
      `task_incremental_image_weighted`, over all images; `last`, the mean over tasks with images; `class_accuracy` and
      `confusion`, see `evaluation.confusion`.
    """
    tasks = np.repeat(np.arange(len(task_sizes)), task_sizes)
    seen, predictions = len(tasks), logits.argmax(axis=1)
    image_tasks = tasks[labels]
    task_predictions = np.where(image_tasks[:, None] == tasks, logits[:, :seen], -np.inf).argmax(axis=1)
    images = np.bincount(image_tasks, minlength=len(task_sizes))
    accuracy, task_incremental = (
        _percent(np.bincount(image_tasks, predicted == labels, len(task_sizes)), images)
        for predicted in (predictions, task_predictions)
    )
    counts = confusion.count_predictions(labels, predictions, seen, logits.shape[1])
    return {
        "images": images.tolist(),
        "accuracy": accuracy,
        "task_incremental": task_incremental,
        "last": float(np.mean([value for value in accuracy if value is not None])),
        "last_image_weighted": 100 * float((predictions == labels).mean()),
        "task_incremental_image_weighted": 100 * float((task_predictions == labels).mean()),
        "class_accuracy": confusion.class_accuracy(counts),
        "confusion": confusion.to_rows(counts),
    }


def _percent(correct, images) -> list[float | None]:
    return [100 * float(c) / int(n) if n else None for c, n in zip(correct, images, strict=True)]
