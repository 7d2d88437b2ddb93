"""Compares normalizations with NumPy, also for few rows and constant channels."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.linalg

from cdl_jax.errors import UserError
from cdl_jax.models.modules import feature_norms

RNG = np.random.default_rng(0)


def test_layer_and_batch_equal_numpy():
    x = 3 + 2 * RNG.normal(size=(7, 5))
    layer = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    batch = (x - x.mean(0)) / x.std(0, ddof=1)
    assert np.allclose(feature_norms.normalize(x, "layer"), layer, atol=1e-5)
    assert np.allclose(feature_norms.normalize(x, "batch"), batch, atol=1e-5)
    assert np.array_equal(feature_norms.normalize(x, "none"), np.float32(x))


def test_a_constant_channel_becomes_zero_with_a_finite_gradient():
    x = np.float32(RNG.normal(size=(4, 3)))
    x[:, 1] = 2.0
    assert not feature_norms.normalize(x, "batch")[:, 1].any()
    assert np.isfinite(jax.grad(lambda x: (feature_norms.normalize(x, "batch") ** 3).sum())(x)).all()
    assert not feature_norms.normalize(x[:1], "batch").any()


@pytest.mark.parametrize("kind", ["whiten_cholesky", "whiten_zca"])
def test_whitened_channels_are_uncorrelated(kind):
    x = RNG.normal(size=(50, 6)) @ RNG.normal(size=(6, 6))
    whitened = np.asarray(feature_norms.normalize(x, kind, 0.0))
    assert np.abs(np.cov(whitened.T) - np.eye(6)).max() < 1e-3
    assert np.abs(whitened.mean(0)).max() < 1e-4


@pytest.mark.parametrize("kind", ["whiten_cholesky", "whiten_zca"])
def test_fewer_rows_than_channels_need_an_epsilon(kind):
    x = jnp.float32(RNG.normal(size=(4, 10)))
    value, gradient = jax.value_and_grad(lambda x: (feature_norms.normalize(x, kind) ** 3).sum())(x)
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()
    assert np.isfinite(feature_norms.normalize(x[:1], kind)).all()
    with pytest.raises(UserError, match="their covariance is singular"):
        feature_norms.normalize(x, kind, 0.0)


def test_the_derivative_of_an_inverse_root_equals_finite_differences_at_repeated_eigenvalues():
    direction = RNG.normal(size=(5, 5))
    direction = direction + direction.T
    for matrix in (np.diag([1.0, 1, 2, 2, 2]), np.diag([0.5, 1, 2, 3, 4]) + 0.1):

        def root(step, matrix=matrix):
            return np.linalg.inv(scipy.linalg.sqrtm(matrix + step * direction)).real

        expected = (root(1e-5) - root(-1e-5)) / 2e-5
        inputs = jnp.float32(matrix), jnp.float32(direction)
        value, tangent = jax.jvp(feature_norms.inverse_root, inputs[:1], inputs[1:])
        assert np.abs(value - root(0)).max() < 1e-5
        assert np.abs(tangent - expected).max() < 1e-4
