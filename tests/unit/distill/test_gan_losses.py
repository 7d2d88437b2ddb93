"""Losses of GANs with a teacher, compared with numbers by hand and with NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.distill.shared import gan_losses
from cdl_jax.errors import UserError
from cdl_jax.models.modules import feature_norms

RNG = np.random.default_rng(0)
REAL, FAKE = np.float32([3.0, 1.0]), np.float32([-2.0, 0.0])


def rows(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def test_hinge_losses_by_hand():
    real, fake = gan_losses.discriminator_hinge(jnp.array([0.5, 2.0]), jnp.array([-2.0, 0.5]))
    assert (float(real), float(fake)) == (0.25, 0.75)
    assert float(gan_losses.generator_hinge(jnp.array([1.0, -3.0]))) == 1.0


def test_running_means_are_replaced_before_the_start_and_move_after_it():
    means = gan_losses.ScoreMeans(jnp.float32(10), jnp.float32(-10))
    early = means.update(REAL, FAKE, jnp.int32(4), start=5)
    assert (float(early.real), float(early.fake)) == (2.0, -1.0)
    late = means.update(REAL, FAKE, jnp.int32(5), start=5, decay=0.75)
    assert (float(late.real), float(late.fake)) == (8.0, -7.75)


def test_the_regularizer_by_hand_begins_after_the_start():
    means = gan_losses.ScoreMeans(jnp.float32(1), jnp.float32(2))
    # relu(s_real - 2)^2 = 1, 0; relu(1 - s_fake)^2 = 9, 1
    assert float(gan_losses.lecam(means, REAL, FAKE, jnp.int32(6), start=5)) == 0.5 + 5
    assert float(gan_losses.lecam(means, REAL, FAKE, jnp.int32(5), start=5)) == 0
    gradient = jax.grad(lambda m: gan_losses.lecam(m, REAL, FAKE, jnp.int32(6), start=5))(means)
    assert (float(gradient.real), float(gradient.fake)) == (0, 0)


def test_aggregated_terms_by_hand():
    teacher, other = jnp.zeros((2, 2)), jnp.full((2, 2), 3.0)
    real, fake = jnp.array([[3.0, 4.0], [0.0, 0.0]]), jnp.array([[0.0, 1.0], [0.0, 3.0]])
    a_real, a_fake = gan_losses.aggregated_loss(teacher, other, real, fake)
    assert float(a_real) == pytest.approx(2.5 + 2)
    to_fake, to_real = (13**0.5 + 3) / 2, (1 + 18**0.5) / 2
    assert float(a_fake) == pytest.approx(to_fake + to_real)
    alone, _ = gan_losses.aggregated_loss(teacher, other, real, fake, opposite=0.0)
    assert float(alone) == pytest.approx(2.5)
    gradient = jax.grad(lambda f: gan_losses.aggregated_loss(teacher, other, f, fake, 0.0)[0])(real)
    np.testing.assert_allclose(gradient, [[0.3, 0.4], [0, 0]], rtol=1e-6)  # no NaN where a distance is 0


def test_correlated_and_diversity_equal_numpy():
    teacher, feature, text = rows(4, 3), rows(4, 3), rows(5, 3)

    def similarities(x):
        products = x @ text.T
        return products / np.linalg.norm(products, axis=1, keepdims=True)

    expected = ((similarities(teacher) - similarities(feature)) ** 2).sum()
    assert float(gan_losses.correlated_loss(teacher, feature, text)) == pytest.approx(expected, rel=1e-5)
    order, own = np.array([1, 0, 3, 2]), similarities(teacher)
    expected = ((own - own[order]) ** 2).sum()
    assert float(gan_losses.diversity(teacher, text, order)) == pytest.approx(expected, rel=1e-5)
    assert not jax.grad(lambda c: gan_losses.diversity(c, text, order))(teacher).any()


def test_few_whitened_rows_are_a_simplex_whatever_the_teacher():
    teacher = rows(6, 20) + 5 * rows(20)
    (targets, _) = gan_losses.teacher_targets(teacher, teacher, root="zca", epsilon=1e-5)
    np.testing.assert_allclose(targets @ targets.T, 5 * (np.eye(6) - 1 / 6), atol=0.02)


@pytest.mark.parametrize("root", gan_losses.ROOTS)
def test_a_joint_whitening_keeps_the_difference_of_the_means(root):
    real, fake = rows(30, 4), rows(30, 4) + np.float32([3, 0, 0, 0])
    each = gan_losses.teacher_targets(real, fake, root=root, epsilon=0.0)
    joint = gan_losses.teacher_targets(real, fake, root=root, epsilon=0.0, scope="joint")
    assert all(float(jnp.abs(half.mean(0)).max()) < 1e-5 for half in each)
    np.testing.assert_allclose(np.cov(np.concatenate(joint).T), np.eye(4), atol=1e-4)
    assert float(jnp.linalg.norm(joint[1].mean(0) - joint[0].mean(0))) > 1


@pytest.mark.parametrize("root", gan_losses.ROOTS)
def test_fixed_statistics_whiten_as_those_of_a_batch(root):
    data = rows(50, 4) @ rows(4, 4) + 2
    whitening = feature_norms.Whitening.from_features(data, 0.01, root)
    targets = gan_losses.teacher_targets(data[:7], data[7:], root=root, scope="data", whitening=whitening)
    expected = feature_norms.whiten(data, 0.01, root)
    np.testing.assert_allclose(np.concatenate(targets), expected, rtol=1e-3, atol=1e-4)
    with pytest.raises(UserError, match="covariance is singular"):
        feature_norms.Whitening.from_features(data[:4], 0.0, root)


def test_other_norms_of_the_teacher_have_no_epsilon_of_whitening():
    teacher = rows(3, 5)
    real, fake = gan_losses.teacher_targets(teacher, 2 * teacher, norm="layer", epsilon=0.5)
    centered = teacher - teacher.mean(1, keepdims=True)
    np.testing.assert_allclose(real, centered / np.sqrt(centered.var(1, keepdims=True) + 1e-5), rtol=1e-4)
    np.testing.assert_allclose(fake, real, rtol=1e-4)
    assert np.array_equal(gan_losses.teacher_targets(teacher, teacher, norm="none")[0], teacher)


def test_the_teacher_gets_no_gradient():
    def total(teacher):
        real, fake = gan_losses.teacher_targets(teacher, teacher, scope="joint")
        terms = *gan_losses.aggregated_loss(teacher, teacher, 2 * real, fake), gan_losses.feature_distance(real, fake)
        return sum(terms) + gan_losses.correlated_loss(teacher, real, fake)

    assert not jax.grad(total)(rows(6, 4)).any()


def test_distances_of_features_by_hand():
    projected, targets = jnp.array([[0.5, 0.0], [3.0, 4.0]]), jnp.zeros((2, 2))
    assert float(gan_losses.feature_distance(projected, targets)) == pytest.approx((0.125 + 0 + 2.5 + 3.5) / 4)
    assert float(gan_losses.feature_distance(projected, targets, "norm")) == pytest.approx(2.75)
