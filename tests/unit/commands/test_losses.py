"""Compares class masks and losses with NumPy on the columns of the mask."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from cdl_jax import losses
from tests.support.contexts import context

RNG = np.random.default_rng(0)
STUDENT, TEACHER = RNG.normal(0, 3, (2, 5, 7))
LABELS = np.array([2, 3, 4, 2, 3])
CURRENT = np.array([False, False, True, True, True, False, False])


def test_masks_of_the_current_and_of_all_seen_classes():
    task_context = context(2, 5)
    np.testing.assert_array_equal(task_context.current(7), CURRENT)
    np.testing.assert_array_equal(task_context.seen(7), [True] * 5 + [False] * 2)
    np.testing.assert_array_equal(context(0, 2).current(3), context(0, 2).seen(3))


def test_excluded_classes_have_probability_exactly_zero():
    for dtype in (jnp.float32, jnp.bfloat16):
        masked = losses.mask_classes(jnp.asarray(STUDENT, dtype), CURRENT)
        assert masked.dtype == jnp.float32
        probability = jax.nn.softmax(masked)
        assert np.all(np.asarray(probability)[:, ~CURRENT] == 0)
        np.testing.assert_allclose(probability.sum(axis=-1), 1, rtol=1e-6)
        assert set(np.asarray(masked.argmax(axis=-1))) <= {2, 3, 4}


def test_cross_entropy_uses_only_the_classes_of_the_mask():
    expected = -log_softmax(STUDENT[:, 2:5], axis=1)[np.arange(5), LABELS - 2].mean()
    assert float(losses.cross_entropy(STUDENT, LABELS, CURRENT)) == pytest.approx(expected, rel=1e-6)
    # Two columns, logits 0 and log 3: the label's probability is 1/4 in the first row and 3/4 in the second.
    logits = jnp.array([[0, np.log(3), 50.0]] * 2)
    value = losses.cross_entropy(logits, jnp.array([0, 1]), jnp.array([True, True, False]))
    assert float(value) == pytest.approx((np.log(4) + np.log(4 / 3)) / 2, rel=1e-6)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_kl_divergence_uses_only_the_classes_of_the_mask(temperature):
    student, teacher = (log_softmax(x[:, 2:5] / temperature, axis=1) for x in (STUDENT, TEACHER))
    expected = (np.exp(teacher) * (teacher - student)).sum(axis=1).mean()
    value = losses.kl_divergence(STUDENT, TEACHER, CURRENT, temperature)
    assert float(value) == pytest.approx(expected, rel=1e-5)
    assert float(losses.kl_divergence(TEACHER, TEACHER, CURRENT, temperature)) == pytest.approx(0, abs=1e-6)


def test_gradients_are_those_of_the_softmax_and_zero_outside_the_mask():
    gradient = np.asarray(jax.grad(losses.cross_entropy)(jnp.asarray(STUDENT), LABELS, CURRENT))
    one_hot = np.eye(7)[LABELS][:, 2:5]
    np.testing.assert_allclose(
        gradient[:, 2:5], (np.exp(log_softmax(STUDENT[:, 2:5], axis=1)) - one_hot) / 5, 1e-4, 1e-7
    )
    assert np.all(gradient[:, ~CURRENT] == 0)
    gradient = np.asarray(jax.grad(losses.kl_divergence)(jnp.asarray(STUDENT), TEACHER, CURRENT, 2.0))
    student, teacher = (np.exp(log_softmax(x[:, 2:5] / 2, axis=1)) for x in (STUDENT, TEACHER))
    np.testing.assert_allclose(gradient[:, 2:5], (student - teacher) / 2 / 5, 1e-4, 1e-7)
    assert np.all(gradient[:, ~CURRENT] == 0)
