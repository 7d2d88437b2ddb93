"""Kernel alignment: definition and invariances; intermediates by path; t-SNE."""

import builtins
from itertools import permutations

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.errors import UserError
from cdl_jax.evaluation import similarity
from cdl_jax.models.modules.batch_norm import BatchNorm
from cdl_jax.report import plots

RNG = np.random.default_rng(2)
X, Y = RNG.normal(size=(30, 4, 3)), RNG.normal(size=(30, 5))


def batches(x, y, size=10):
    return [([x[i : i + size]], [y[i : i + size]]) for i in range(0, len(x), size)]


def test_hsic_is_the_mean_over_all_different_images():
    k, m = (x @ x.T for x in (RNG.normal(size=(6, 3)), RNG.normal(size=(6, 2))))
    terms = [k[i, j] * (m[i, j] + m[q, r] - 2 * m[i, q]) for i, j, q, r in permutations(range(6), 4)]
    assert similarity.hsic(k, m) == pytest.approx(np.mean(terms))
    assert similarity.hsic(k + np.diag(RNG.normal(size=6)), m) == pytest.approx(np.mean(terms))


def test_cka_is_invariant_to_rotation_shift_and_scale():
    turned = 3 * X.reshape(30, 12) @ np.linalg.qr(RNG.normal(size=(12, 12)))[0] + 7
    assert similarity.cka(batches(X, turned))[0, 0] == pytest.approx(1)
    assert similarity.linear_cka(X, turned) == pytest.approx(1)


def test_unbiased_cka_of_independent_features_is_near_0():
    unbiased = similarity.cka(batches(RNG.normal(size=(400, 60)), RNG.normal(size=(400, 60)), 50))[0, 0]
    assert abs(unbiased) < 0.05
    assert similarity.linear_cka(X, Y) > 0.1


def test_cka_has_a_row_for_each_layer_and_batches_have_equal_weights():
    layers = [([a, a**2], [b, b[:, :2], b**3]) for ((a,), (b,)) in (*batches(X, Y), ([X[:5]], [Y[:5]]))]
    found = similarity.cka(layers)
    assert found.shape == (2, 3)
    alone = similarity.cka([([first[1]], [second[2]]) for first, second in layers])
    assert found[1, 2] == pytest.approx(alone[0, 0])
    terms = np.mean([similarity.hsic_terms(*layer) for layer in layers], axis=0)
    np.testing.assert_allclose(found, terms[1] / np.sqrt(terms[0] * terms[2]))


def test_cka_of_large_nearly_constant_layers():
    x = (1000 + 1e-2 * RNG.normal(size=(20, 8))).astype(np.float32)
    assert similarity.cka(batches(x, x))[0, 0] == pytest.approx(1)
    assert similarity.hsic_terms([x], [x])[0, 0, 0] > 0


class Net(nn.Module):
    @nn.compact
    def __call__(self, x, train=False):
        h = nn.relu(BatchNorm(name="bn")(nn.Dense(4, name="first")(x), train))
        return nn.Dense(2, name="last")(h), {"hidden": h}


def test_intermediates_are_evaluation_outputs_by_path():
    x = jnp.asarray(Y, jnp.float32)
    variables = Net().init(jax.random.key(0), x)
    variables["batch_stats"]["bn"]["mean"] = jnp.full(4, 0.5)
    found = similarity.intermediates(Net(), variables, x)
    assert found.keys() == {"", "first", "bn", "last"}
    np.testing.assert_allclose(found["bn"], (found["first"] - 0.5) / np.sqrt(1 + 1e-5), rtol=1e-5)
    np.testing.assert_array_equal(found[""], found["last"])
    assert similarity.intermediates(Net(), variables, x, ["bn"]).keys() == {"bn"}


def test_tsne_separates_clusters_and_a_seed_repeats_it():
    pytest.importorskip("sklearn")
    labels = np.repeat([0, 1], 20)
    features = RNG.normal(size=(40, 2, 6)) + 8 * labels[:, None, None]
    places = similarity.tsne(features, perplexity=5, pca=3, seed=1)
    assert places.shape == (40, 2)
    distances = np.linalg.norm(places[:, None] - places, axis=-1) + np.diag(np.full(40, np.inf))
    assert (labels[distances.argmin(axis=1)] == labels).all()
    assert np.array_equal(places, similarity.tsne(features, perplexity=5, pca=3, seed=1))


def test_a_full_projection_keeps_distances():
    pytest.importorskip("sklearn")
    flat = similarity.project(Y, 50)
    assert flat.shape == (30, 5)
    np.testing.assert_allclose(np.linalg.norm(flat[0] - flat[1]), np.linalg.norm(Y[0] - Y[1]))
    assert (np.diff(flat.var(axis=0)) < 0).all()


def test_too_few_points_and_a_missing_library_are_refused(monkeypatch):
    with pytest.raises(UserError, match="perplexity=30.0 must be less than the 30 points"):
        similarity.tsne(Y)
    known = builtins.__import__

    def without(name, *rest):
        if name.startswith("sklearn"):
            raise ImportError(name)
        return known(name, *rest)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match="pip install scikit-learn"):
        similarity.tsne(Y, perplexity=5)


def test_more_labels_than_colors_have_other_marks():
    points, labels = RNG.normal(size=(90, 2)), np.arange(90) % 30
    svg = plots.scatter(points, labels, "many")
    assert svg == plots.scatter(points, labels, "many") and svg.count('id="line2d_') >= 30
