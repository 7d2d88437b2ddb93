"""Measures of generated images, by hand and compared with plain definitions."""

import numpy as np
import pytest
import scipy.linalg

from cdl_jax.evaluation import frechet

RNG = np.random.default_rng(0)


@pytest.mark.parametrize("rows", [40, 5])
def test_the_distance_equals_its_definition_also_with_fewer_rows_than_dimensions(rows):
    generated, real = RNG.normal(size=(rows, 8)), 1 + 2 * RNG.normal(size=(60, 8))
    first, second = np.cov(generated.T), np.cov(real.T)
    root = scipy.linalg.sqrtm(first @ second).real
    means = ((generated.mean(0) - real.mean(0)) ** 2).sum()
    expected = means + np.trace(first + second - 2 * root)
    assert frechet.frechet_distance(generated, real) == pytest.approx(expected, rel=1e-6)
    assert frechet.frechet_distance(real, real) == pytest.approx(0, abs=1e-10)


def test_the_distance_in_one_dimension_by_hand():
    # Means 1 and 4, variances 2 and 8: 9 + (sqrt 2 - sqrt 8)^2.
    assert frechet.frechet_distance([[0.0], [2.0]], [[2.0], [6.0]]) == pytest.approx(11)


def test_the_kernel_distance_equals_its_definition_in_blocks(monkeypatch):
    x, y = RNG.normal(size=(7, 3)), RNG.normal(size=(5, 3))
    kernel = {(i, j): (a @ b / 3 + 1) ** 3 for i, a in enumerate([*x, *y]) for j, b in enumerate([*x, *y])}
    own = sum(kernel[i, j] for i in range(7) for j in range(7) if i != j) / 42
    own += sum(kernel[i, j] for i in range(7, 12) for j in range(7, 12) if i != j) / 20
    expected = own - 2 * sum(kernel[i, j] for i in range(7) for j in range(7, 12)) / 35
    assert frechet.kernel_distance(x, y) == pytest.approx(expected)
    monkeypatch.setattr(frechet, "_BLOCK", 3)
    assert frechet.kernel_distance(x, y) == pytest.approx(expected)


def test_scores_of_parts_by_hand():
    certain, equal = [[1.0, 0.0], [0.0, 1.0]], [[0.5, 0.5], [0.5, 0.5]]
    mean, deviation = frechet.inception_score(np.array([*certain, *equal, [1.0, 0.0]]), splits=2)
    assert (mean, deviation) == (pytest.approx(1.5), pytest.approx(0.5))  # 2 and 1; the fifth row fills no part


def test_levels_are_rounded_and_clipped():
    step = 2 / 255
    images = np.array([-1 + 0.49 * step, -1 + 0.51 * step, 1.1, -1.1])
    assert frechet.to_levels(images).tolist() == [0, 1, 255, 0]
    assert frechet.to_levels(images).dtype == np.uint8


def test_the_share_of_images_taken_for_real():
    assert frechet.real_share([0.0, 1.0, 2.0, -1.0]) == 0.5


def test_one_image_a_class_has_no_variance():
    real, labels = [[0.0, 0.0], [2.0, 0.0], [5.0, 5.0], [5.0, 9.0]], [3, 3, 1, 1]
    assert frechet.variance_ratio([[1.0, 1.0]] * 2 + [[7.0, 0.0]] * 2, [0, 0, 1, 1], real, labels) == 0
    # Real: (2 + 8) / 2. Generated: means [1, 0] and [0, 0]; (2 + 0.5) / 2.
    generated = [[0.0, 0.0], [2.0, 0.0], [0.5, 0.0], [-0.5, 0.0]]
    assert frechet.variance_ratio(generated, [3, 3, 1, 1], real, labels) == pytest.approx(0.25)


def test_nearest_class_means_of_labels_with_gaps():
    real, labels = [[0.0, 0.0], [2.0, 0.0], [9.0, 9.0]], [4, 4, 7]
    generated = [[1.0, 1.0], [8.0, 8.0], [1.0, 0.0], [9.0, 8.0]]
    assert frechet.nearest_mean_accuracy(generated, [4, 7, 7, 5], real, labels) == 0.5
