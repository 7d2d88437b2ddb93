"""Post-processing of a detector's outputs."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.errors import UserError
from cdl_jax.evaluation.detections import Detections, top_detections


def test_the_best_pairs_of_query_and_class_in_pixels():
    logits = jnp.array([[[0.0, 3.0], [1.0, -2.0], [2.0, 2.5]]])
    boxes = jnp.array([[[0.5, 0.5, 0.5, 1.0], [0.25, 0.25, 0.5, 0.5], [0.9, 0.1, 0.4, 0.2]]])
    found = jax.jit(top_detections, static_argnums=3)(logits, boxes, jnp.array([[40, 80]]), 4)
    np.testing.assert_allclose(found["scores"][0], 1 / (1 + np.exp([-3.0, -2.5, -2.0, -1.0])), rtol=1e-6)
    assert found["labels"].tolist() == [[1, 1, 0, 0]]
    expected = [[20, 0, 60, 40], [56, 0, 88, 8], [56, 0, 88, 8], [0, 0, 40, 20]]  # the third query's end outside
    np.testing.assert_allclose(found["boxes"][0], expected, atol=1e-5)


def test_fewer_pairs_than_requested_and_ties():
    found = top_detections(jnp.zeros((2, 2, 3)), jnp.full((2, 2, 4), 0.5), jnp.array([[10, 10], [20, 20]]))
    assert found["labels"].tolist() == [[0, 1, 2, 0, 1, 2]] * 2  # ties by query, then class
    assert found["scores"].shape == (2, 6)


def batch(rows, weight, scores=0.5):
    n = len(rows)
    return {
        "rows": np.array(rows, np.int32),
        "weight": np.array(weight, np.float32),
        "labels": np.arange(2 * n, dtype=np.int32).reshape(n, 2),
        "boxes": np.zeros((n, 2, 4), np.float32),
        "scores": np.full((n, 2), scores, np.float32),
    }


def test_images_without_weight_are_left_out():
    found = Detections.collect([batch([0, 1], [1, 1]), batch([2, -1], [1, 0])])
    assert found.rows.tolist() == [0, 0, 1, 1, 2, 2] and found.labels.tolist() == [0, 1, 2, 3, 0, 1]
    assert found.boxes.shape == (6, 4) and found.scores.shape == (6,)


def test_detections_of_some_images_with_a_score():
    found = Detections(
        np.array([0, 0, 1, 2]), np.array([5, 6, 7, 8]), np.arange(16.0).reshape(4, 4), np.array([0.9, 0.2, 0.3, 0.8])
    )
    selected = found.select(np.array([0, 1]), 0.3)
    assert selected.rows.tolist() == [0, 1] and selected.labels.tolist() == [5, 7]
    assert selected.boxes.tolist() == [[0, 1, 2, 3], [8, 9, 10, 11]] and selected.scores.tolist() == [0.9, 0.3]
    assert len(found.select(np.array([2, 3])).rows) == 1


def test_an_image_that_occurs_twice_and_numbers_that_are_not_finite_are_refused():
    with pytest.raises(ValueError, match="occurs twice"):
        Detections.collect([batch([0, 1], [1, 1]), batch([1, -1], [1, 0])])
    with pytest.raises(UserError, match="outputs for image 5 of the set are not finite"):
        Detections.collect([batch([5, 6], [1, 1], np.nan)])
    assert len(Detections.collect([batch([5, 6], [0, 0], np.nan)]).rows) == 0
