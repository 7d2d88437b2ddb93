"""Tests the initial values of the linear head."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.models.modules import heads


@pytest.mark.parametrize("dim", [16, 100])
def test_weights_and_bias_have_the_initial_interval_of_torch(dim):
    params = heads.LinearHead(2000).init(jax.random.key(0), jnp.zeros((1, dim)))["params"]["linear"]
    bound = dim**-0.5
    for values in (np.asarray(params["kernel"]), np.asarray(params["bias"])):
        assert 0.99 * bound < np.abs(values).max() <= bound * (1 + 1e-6)
        assert values.std() == pytest.approx(bound / np.sqrt(3), rel=0.03)
        assert abs(values.mean()) < 0.05 * bound
    assert params["kernel"].shape == (dim, 2000) and params["bias"].shape == (2000,)


def test_logits_are_float32_for_bfloat16_features():
    head = heads.LinearHead(3)
    variables = {"params": {"linear": {"kernel": jnp.array([[1.0, 2, 3], [4, 5, 6]]), "bias": jnp.array([0.5, 0, 0])}}}
    logits = head.apply(variables, jnp.array([[1, -1]], jnp.bfloat16))
    assert logits.dtype == jnp.float32
    np.testing.assert_array_equal(logits, [[-2.5, -3, -3]])
