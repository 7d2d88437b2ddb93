"""Accuracies from logits against counts by hand."""

import numpy as np
import pytest

from cdl_jax.evaluation import classified


def test_accuracies_by_hand():
    """Tasks of two, one and two classes; the last has no image, class 5 is not seen."""
    best, second = np.array([0, 1, 2, 2, 0]), np.array([1, 0, 1, 0, 2])
    logits = 2 * np.eye(6)[best] + np.eye(6)[second]
    logits[:, 5] = -np.inf
    found = classified.measure(logits, np.array([0, 0, 1, 2, 2]), (2, 1, 2))
    assert found["images"] == [3, 2, 0]
    assert found["accuracy"] == [pytest.approx(100 / 3), 50, None]
    assert found["task_incremental"] == [pytest.approx(200 / 3), 100, None]  # image 2 is a 1 among 0 and 1
    assert found["last"] == pytest.approx((100 / 3 + 50) / 2)
    assert found["last_image_weighted"] == pytest.approx(40)
    assert found["task_incremental_image_weighted"] == pytest.approx(80)
    assert found["class_accuracy"] == [50, 0, 50, None, None]
    assert found["confusion"] == [{"0": 1, "1": 1}, {"2": 1}, {"0": 1, "2": 1}, {}, {}]


def test_a_prediction_may_be_of_a_class_that_was_not_learned():
    found = classified.measure(np.array([[0.0, 1.0, 2.0]]), np.array([1]), (2,))
    assert found["confusion"] == [{}, {"2": 1}] and found["task_incremental"] == [100] and found["accuracy"] == [0]
