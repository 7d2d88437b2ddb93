"""The core of attention: gradients in bfloat16, and the fused form with padding."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.models.modules import attention

RNG = np.random.default_rng(3)


def normal(*shape, dtype=jnp.float32):
    return jnp.asarray(RNG.normal(size=shape), dtype)


def plain(query, key, value):
    """Returns the mixture of values by two products and a softmax."""
    return attention.mix(query, key, value, attention.weights(query, key)).reshape(*query.shape)


def fused(query, key, value):
    """Mixes values by XLA from operands of cuDNN's kernel, without the added query."""
    return attention.fused_attention(query, key, value, "xla")[:, : query.shape[1]]


def products(function, *arguments):
    """Returns the dtypes of the operands of each matrix product of a function."""

    def collect(jaxpr):
        for equation in jaxpr.eqns:
            if equation.primitive.name == "dot_general":
                yield tuple(variable.aval.dtype.name for variable in equation.invars)
            for value in equation.params.values():
                inner = getattr(value, "jaxpr", value)
                if hasattr(inner, "eqns"):
                    yield from collect(inner)

    return list(collect(jax.make_jaxpr(function)(*arguments).jaxpr))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_gradients_of_scores_have_products_of_the_type_of_the_queries(dtype):
    query, key, value = (normal(2, length, 2, 8, dtype=dtype) for length in (5, 7, 7))
    weight = normal(2, 5, 2, 8)

    def loss(query, key, value):
        return (plain(query, key, value).astype(jnp.float32) * weight).sum()

    found = products(jax.grad(loss, (0, 1, 2)), query, key, value)
    assert len(found) == 6 and set(found) == {(dtype, dtype)}
    wide = [array.astype(jnp.float32) for array in (query, key, value)]
    tolerance = {"float32": 0, "bfloat16": 2e-2}[dtype]
    for rough, exact in zip(
        jax.grad(loss, (0, 1, 2))(query, key, value), jax.grad(loss, (0, 1, 2))(*wide), strict=True
    ):
        assert rough.dtype == dtype
        np.testing.assert_allclose(rough, exact, rtol=0, atol=tolerance * np.abs(exact).max())


@pytest.mark.parametrize(("queries", "keys"), [(5, 7), (5, 8), (6, 7), (6, 8)])
def test_fused_attention_equals_the_plain_form_for_odd_and_even_lengths(queries, keys):
    query, key, value, weight = (normal(2, length, 2, 8) for length in (queries, keys, keys, queries))
    assert attention.fused_attention(query, key, value, "xla").shape == (2, 6, 2, 8)

    def both(form):
        return jax.value_and_grad(lambda *operands: (form(*operands) * weight).sum(), (0, 1, 2))(query, key, value)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=5e-7, atol=5e-7), both(fused), both(plain))


def test_added_keys_take_no_weight():
    query, key, value = normal(1, 2, 1, 8), jnp.full((1, 3, 1, 8), -9.0), jnp.ones((1, 3, 1, 8))
    # The scores of the given keys are far below 0, that of a row of zeros.
    np.testing.assert_allclose(fused(jnp.abs(query), key, value), 1, rtol=1e-6)


@pytest.mark.parametrize("of_sum", [False, True], ids=["gradient of each seed", "gradient of the sum over seeds"])
def test_fused_attention_maps_over_seeds_that_share_queries(of_sum):
    """Seeds share the first block's queries; prompts make keys and values differ."""
    query, keys, value, weight = normal(2, 5, 2, 8), normal(3, 2, 7, 2, 8), normal(2, 7, 2, 8), normal(2, 5, 2, 8)

    def gradients(form):
        def loss(query, key, value):
            return (form(query, key, value) * weight).sum()

        axes = (None, 0, None)
        if of_sum:
            total = lambda *operands: jax.vmap(loss, axes)(*operands).sum()  # noqa: E731
            return jax.grad(total, (0, 1, 2))(query, keys, value)
        return jax.vmap(jax.value_and_grad(loss, (0, 1, 2)), axes)(query, keys, value)

    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-6, atol=2e-6), gradients(fused), gradients(plain)
    )


def test_all_operands_of_the_kernel_have_the_axis_of_seeds():
    shapes = []

    def record(query, key, value):
        shared = attention._share_batch_axes((query, key, value, jnp.full((2,), 7, jnp.int32)))
        jax.debug.callback(lambda *arrays: shapes.append([array.shape for array in arrays]), *shared)
        return shared

    operands = normal(2, 6, 2, 8), normal(3, 2, 8, 2, 8), normal(2, 8, 2, 8)
    shared = jax.vmap(record, (None, 0, None), out_axes=0)(*operands)
    assert [array.shape for array in shared] == [(3, 2, 6, 2, 8), (3, 2, 8, 2, 8), (3, 2, 8, 2, 8), (3, 2)]
    np.testing.assert_array_equal(shared[0], np.broadcast_to(operands[0], (3, 2, 6, 2, 8)))
