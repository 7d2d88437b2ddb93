"""BigGAN: published parameter counts, spectral norms by hand, changes per mode."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.errors import UserError
from cdl_jax.models import biggan
from cdl_jax.models.modules import spectral_norm

LABELS = jnp.array([2, 0])
CHEAP = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def count(shapes):
    return sum(leaf.size for leaf in jax.tree.leaves(shapes["params"]))


def shapes_of(module, *inputs):
    return jax.eval_shape(lambda key: module.init(key, *inputs, False), jax.random.key(0))


@pytest.mark.parametrize(("classes", "parameters"), [(10, 4_304_387), (100, 4_580_867)])
def test_the_generator_has_the_published_number_of_parameters(classes, parameters):
    generator = biggan.Generator(64, classes, 128)
    shapes = shapes_of(generator, jnp.zeros((2, 128)), LABELS)
    assert count(shapes) == parameters
    images, state = jax.eval_shape(
        lambda v: generator.apply(v, jnp.zeros((2, 128)), LABELS, True, mutable=["batch_stats", "spectral"]), shapes
    )
    assert images.shape == (2, 32, 32, 3)
    assert jax.tree.map(jnp.shape, state) == jax.tree.map(jnp.shape, {k: shapes[k] for k in state})


@pytest.mark.parametrize(
    ("classes", "head", "parameters"),
    [(10, (), 4_207_361), (100, (), 4_230_401), (10, (1024, 512), 4_995_329), (100, (1024, 512), 5_018_369)],
)
def test_the_discriminator_has_the_published_number_of_parameters(classes, head, parameters):
    discriminator, images = biggan.Discriminator(64, classes, head), jnp.zeros((2, 32, 32, 3))
    shapes = shapes_of(discriminator, images, LABELS)
    assert count(shapes) == parameters
    out = jax.eval_shape(lambda v: discriminator.apply(v, images, LABELS, False), shapes)
    assert (out.score.shape, out.pooled.shape) == ((2,), (2, 256))
    assert (None if out.features is None else out.features.shape) == ((2, 512) if head else None)


def test_initial_values():
    conv = spectral_norm.SpectralConv(64).init(jax.random.key(0), jnp.zeros((1, 4, 4, 16)), False)
    params, bound = conv["params"], (16 * 9) ** -0.5
    assert float(params["kernel"].std()) == pytest.approx(0.02, rel=0.02)
    assert 0.9 * bound < float(jnp.abs(params["bias"]).max()) <= bound
    assert conv["spectral"]["u"].shape == (1, 64)
    assert float(conv["spectral"]["u"].std()) == pytest.approx(1, rel=0.2)
    norm = biggan.ConditionalBatchNorm(20).init(jax.random.key(0), jnp.zeros((1, 2, 2, 50)), LABELS[:1], False)
    for table in norm["params"].values():
        assert table.shape == (20, 50) and float(table.std()) == pytest.approx(0.02, rel=0.1)


def test_a_spectral_layer_divides_by_the_norm_of_its_step():
    rng = np.random.default_rng(0)
    kernel, u = rng.normal(size=(3, 3, 2, 4)), rng.normal(size=(1, 4))
    matrix = kernel.reshape(-1, 4).T
    v = (matrix.T @ u[0]) / np.linalg.norm(matrix.T @ u[0])
    new = matrix @ v / np.linalg.norm(matrix @ v)
    x, layer = rng.normal(size=(1, 5, 5, 2)), spectral_norm.SpectralConv(4)
    variables = {"params": {"kernel": kernel, "bias": np.ones(4)}, "spectral": {"u": u}}
    variables = jax.tree.map(jnp.float32, variables)
    y, state = layer.apply(variables, jnp.float32(x), True, mutable=["spectral"])
    expected = (x[0, 1:4, 2:5, :, None] * kernel).sum((0, 1, 2)) / (new @ matrix @ v) + 1
    np.testing.assert_allclose(y[0, 2, 3], expected, rtol=1e-5)
    np.testing.assert_allclose(state["spectral"]["u"][0], new, rtol=1e-5)
    # An evaluation uses the next estimate as well, and leaves u as it was.
    np.testing.assert_allclose(layer.apply(variables, jnp.float32(x), False), y, rtol=1e-5)


def test_the_norm_of_a_class_has_its_own_gain_and_bias():
    x = np.random.default_rng(0).normal(size=(4, 2, 2, 3)).astype(np.float32)
    labels, norm = jnp.array([1, 0, 1, 1]), biggan.ConditionalBatchNorm(2)
    gain, bias = np.float32([[0.5, 0, 1], [-1, 2, 0]]), np.float32([[1, 2, 3], [4, 5, 6]])
    variables = norm.init(jax.random.key(0), x, labels, False) | {"params": {"gain": gain, "bias": bias}}
    y, state = norm.apply(variables, x, labels, True, mutable=["batch_stats"])
    normalized = (x - x.mean((0, 1, 2))) / np.sqrt(x.var((0, 1, 2)) + 1e-5)
    expected = normalized * (1 + gain)[labels][:, None, None] + bias[labels][:, None, None]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        state["batch_stats"]["norm"]["var"], 0.9 + 0.1 * x.var((0, 1, 2), ddof=1), rtol=1e-5
    )  # fmt: skip


def test_class_scores_are_the_scores_with_each_label():
    discriminator, rng = biggan.Discriminator(1, 3, (5, 4)), np.random.default_rng(0)
    images = rng.uniform(-1, 1, size=(2, 8, 8, 3)).astype(np.float32)
    variables = shapes_of(discriminator, images, LABELS)
    variables = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), variables)

    def scores(variables):
        every = discriminator.apply(variables, images, method="class_scores")
        single = discriminator.apply(variables, jnp.repeat(images, 3, 0), jnp.tile(jnp.arange(3), 2), False)
        return every, single.score.reshape(2, 3)

    every, single = jax.jit(scores).lower(variables).compile(CHEAP)(variables)
    np.testing.assert_allclose(every, single, rtol=1e-4)
    assert np.ptp(every, axis=1).min() > 0


@pytest.mark.parametrize("size", [4, 24, 33])
def test_a_wrong_image_size_is_refused(size):
    with pytest.raises(UserError, match=f"image_size={size} of a BigGAN: use 8, 16, 32"):
        shapes_of(biggan.Generator(1, 2, 3, size), jnp.zeros((2, 3)), LABELS)
