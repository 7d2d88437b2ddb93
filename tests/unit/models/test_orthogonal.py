"""Orthogonal weights against dense float64 matrix functions, and weight decay."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.linalg

from cdl_jax.models.modules import orthogonal

SHAPES = [(6, 6), (12, 5), (5, 12), (40, 3)]
RNG = np.random.default_rng(0)


def dense(kind, raw, signs):
    """Computes Q `[n, k]` of a tall `raw` with dense matrices in float64."""
    n, k = raw.shape
    lower = np.tril(raw, -1)
    if kind == "householder":
        q = np.eye(n)
        for j in range(k):
            v = np.eye(n)[j] + lower[:, j]
            q = q @ (np.eye(n) - 2 * np.outer(v, v) / (v @ v))
        return q[:, :k] * signs
    skew = np.pad(lower, ((0, 0), (0, n - k)))
    skew = skew - skew.T
    if kind == "matrix_exp":
        return scipy.linalg.expm(skew)[:, :k]
    return np.linalg.solve(np.eye(n) - skew / 2, np.eye(n) + skew / 2)[:, :k]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("kind", ["householder", "matrix_exp", "cayley"])
def test_maps_equal_dense_matrix_functions(kind, shape):
    n, k = max(shape), min(shape)
    raw, signs = 0.5 * RNG.normal(size=shape), RNG.choice([-1.0, 1.0], k)
    base = scipy.linalg.qr(RNG.normal(size=(n, n)))[0]
    tall = raw if shape[0] >= shape[1] else raw.T
    expected = base @ dense(kind, tall, signs)
    weight = orthogonal.orthogonal_weight(jnp.float32(raw), jnp.float32(base), kind, shape, jnp.float32(signs))
    assert weight.shape == shape
    assert np.abs((weight if tall is raw else weight.T) - expected).max() < 3e-6
    assert orthogonal.orthogonality_error(weight) < 3e-6


def test_skew_expm_equals_scipy():
    square = RNG.normal(size=(9, 9))
    expected = scipy.linalg.expm((square - square.T) / 2)
    for shape in ((9, 4), (4, 9)):
        weight = orthogonal.orthogonal_weight(jnp.float32(square), None, "skew_expm", shape)
        assert np.abs(weight - (expected[:, :4] if shape[0] == 9 else expected[:, :4].T)).max() < 3e-6


@pytest.mark.parametrize("shape", [(7, 4), (12, 2), (4, 7)], ids=str)
@pytest.mark.parametrize("kind", ["householder", "matrix_exp", "cayley"])
def test_gradients_equal_finite_differences_of_the_dense_functions(kind, shape):
    raw, signs = 0.5 * RNG.normal(size=shape), np.array([1.0, -1, -1, 1])[: min(shape)]
    cotangent = RNG.normal(size=shape)

    def value(raw):
        tall = raw if shape[0] >= shape[1] else raw.T
        q = dense(kind, tall, signs)
        return (cotangent * (q if tall is raw else q.T)).sum()

    def jax_value(raw):
        return (jnp.float32(cotangent) * orthogonal.orthogonal_weight(raw, None, kind, shape, jnp.float32(signs))).sum()

    gradient, step = jax.jit(jax.grad(jax_value))(jnp.float32(raw)), 1e-5
    for index in np.ndindex(*shape):
        moved = np.zeros(shape)
        moved[index] = step
        expected = (value(raw + moved) - value(raw - moved)) / (2 * step)
        assert gradient[index] == pytest.approx(expected, rel=2e-4, abs=2e-5)
    tall = gradient if shape[0] >= shape[1] else gradient.T
    assert not np.triu(tall).any()


@pytest.mark.parametrize("kind", ["", *orthogonal.MAPS])
@pytest.mark.parametrize("shape", [(5, 5), (8, 3), (3, 8)], ids=str)
def test_a_layer_starts_and_stays_orthogonal(kind, shape):
    layer = orthogonal.OrthogonalDense(shape[0], kind)
    x = jnp.float32(RNG.normal(size=(4, shape[1])))
    variables = jax.jit(layer.init)(jax.random.key(0), x)

    @jax.jit
    def weight(params):
        return layer.apply({**variables, "params": params}, jnp.eye(shape[1])).T

    start = weight(variables["params"])
    assert orthogonal.orthogonality_error(start) < 1e-5
    if kind != "skew_expm":
        base = variables["state"]["base"][:, : min(shape)]
        assert np.allclose(start, base if shape[0] >= shape[1] else base.T, atol=1e-6)
    assert np.allclose(layer.apply(variables, x), x @ start.T, atol=1e-6)
    later = jax.tree.map(lambda p: p + jnp.float32(RNG.normal(size=p.shape)), variables["params"])
    assert orthogonal.orthogonality_error(weight(later)) < 1e-5
    assert np.abs(weight(later) - start).max() > 0.1


@pytest.mark.parametrize("exact", [False, True])
def test_weight_decay_makes_the_reference_projector_zero(exact):
    layer = orthogonal.OrthogonalDense(8, "householder", exact)
    x = jnp.ones((1, 3))
    variables = jax.jit(layer.init)(jax.random.key(0), x)
    optimizer = optax.adamw(5e-4, weight_decay=0.05)
    params = variables["params"]
    state = optimizer.init(params)
    gradient = jax.grad(lambda p: layer.apply({**variables, "params": p}, x).sum())(params)
    params = optax.apply_updates(params, optimizer.update(gradient, state, params)[0])
    weight = layer.apply({**variables, "params": params}, jnp.eye(3)).T
    if exact:
        assert not weight.any()
    else:
        assert orthogonal.orthogonality_error(weight) < 1e-5


def test_init_raw_gives_the_orthogonal_factor():
    initial = RNG.normal(size=(6, 4))
    raw = orthogonal.init_raw(jnp.float32(initial))
    q, r = np.linalg.qr(initial)
    weight = orthogonal.orthogonal_weight(raw, None, "householder", (6, 4))
    assert np.allclose(weight, q * np.sign(np.diag(r)), atol=1e-5)
