"""The most probable classes, and the boxes above a threshold."""

import numpy as np
import pytest

from cdl_jax.evaluation.predictions import BoxPredictions, ClassPredictions, mask_unseen


def test_excluded_classes_have_probability_zero_and_are_never_listed():
    logits = mask_unseen(np.log(np.array([[1.0, 3.0, 50.0], [6.0, 2.0, 50.0]])), [True, True, False])
    found = ClassPredictions(logits, ("a", "b", "c"))
    np.testing.assert_allclose(found.probabilities, [[0.25, 0.75, 0], [0.75, 0.25, 0]], rtol=1e-6)
    assert found.names == ["b", "a"] and found.labels.tolist() == [1, 0] and len(found) == 2
    assert [[name for name, _ in image] for image in found.top(5)] == [["b", "a"], ["a", "b"]]
    assert found.top(1)[0] == [("b", pytest.approx(0.75))]


def test_large_logits_do_not_overflow():
    found = ClassPredictions(np.array([[2000.0, 1000.0, -np.inf]], np.float32), ("a", "b", "c"))
    assert found.probabilities.tolist() == [[1, 0, 0]]


def test_equal_logits_are_listed_in_stream_order():
    assert ClassPredictions(np.zeros((1, 3)), ("a", "b", "c")).top_labels(2) == [[0, 1]]


def test_boxes_are_selected_by_score_and_category():
    detections = {
        "scores": np.array([0.9, 0.6, 0.5, 0.4], np.float32),
        "labels": np.array([3, 0, 5, 3]),  # 0 is no category
        "boxes": np.array([[1, 2, 4, 8], [0, 0, 9, 9], [-1, 0, 3, 3], [0, 0, 1, 1]], np.float32),
    }
    found = BoxPredictions.select(detections, {3: "cat", 5: "dog"}, 0.5)
    assert found.class_names == ("cat", "dog") and found.class_ids.tolist() == [3, 5] and len(found) == 2
    np.testing.assert_array_equal(found.boxes, [[1, 2, 3, 6], [-1, 0, 4, 3]])
    assert found.top(1).class_names == ("cat",)
    assert len(BoxPredictions.select(detections, {3: "cat"}, 0.95)) == 0
