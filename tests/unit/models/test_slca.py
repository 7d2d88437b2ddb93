"""SLCA: class Gaussians, normalized logits, head alignment on drawn features."""

import jax
import numpy as np
import pytest

from cdl_jax.methods.base import join
from cdl_jax.models.learners import slca
from cdl_jax.runtime.checkpoint import Checkpoints
from tests.support.contexts import context
from tests.support.learner_runs import LABELS, build, outputs, train

RNG = np.random.default_rng(6)
CLASSES, TASKS, WIDTH = 5, 3, 3
LABELS_OF_TASKS = ((0, 1), (2, 3), (4,))


def statistics_of(rows, labels):
    """Returns statistics of images of the first two tasks; batches have a padding row."""
    head = slca.AlignedHead(CLASSES, TASKS, slca.Alignment(1, 0.1, 4, 0.0))
    statistics, accumulate = head.init_statistics(WIDTH), jax.jit(head.accumulate)
    for task in (0, 1):
        own = np.flatnonzero(np.isin(labels, LABELS_OF_TASKS[task]))
        for part in np.array_split(own, 2):
            features, batch = np.concatenate([rows[part], 7 + rows[:1]]), np.append(labels[part], 0)
            weight = np.float32([*[1] * len(part), 0])
            statistics = accumulate(statistics, features, batch, context(task=task).replace(weight=weight))
    return jax.device_get(statistics)


def samples(count=30):
    labels = np.arange(count, dtype=np.int32) % 4
    return (RNG.normal(size=(count, WIDTH)) * (1 + labels[:, None]) + labels[:, None]).astype(np.float32), labels


def test_a_class_has_the_mean_and_the_covariance_of_its_features():
    rows, labels = samples()
    statistics = statistics_of(rows, labels)
    np.testing.assert_array_equal(statistics["counts"], [*np.bincount(labels), 0])
    np.testing.assert_array_equal(statistics["tasks"], [0, 0, 1, 1, 0])
    factors = np.asarray(slca.covariance_factors(statistics))
    for label in range(4):
        own = np.float64(rows[labels == label])
        diagonal = max(1e-4, 2.0**-21 * (own**2).sum(axis=1).mean())
        expected = np.cov(own.T) + diagonal * np.eye(WIDTH)
        np.testing.assert_allclose(factors[label] @ factors[label].T, expected, rtol=1e-4, atol=1e-5)


def test_few_images_of_large_features_have_a_finite_factor():
    rows = RNG.normal(100, 1, (6, 40)).astype(np.float32)
    head = slca.AlignedHead(1, 1, slca.Alignment(1, 0.1, 4, 0.0))
    at = context().replace(weight=np.ones(6, np.float32))
    statistics = head.accumulate(head.init_statistics(40), rows, np.zeros(6, np.int32), at)
    assert np.isfinite(slca.covariance_factors(statistics)).all()


def test_logits_are_divided_by_the_mean_norm_of_the_tasks():
    logits, tasks = RNG.normal(size=(6, CLASSES)).astype(np.float32), np.array([0, 0, 1, 1, 2])
    is_seen = np.array([True] * 4 + [False])
    alignment = slca.Alignment(1, 0.1, 4, 0.1)
    norms = (np.linalg.norm(logits[:, :2], axis=1) + np.linalg.norm(logits[:, 2:4], axis=1)) / 2
    found = slca.normalize_logits(logits, tasks, is_seen, TASKS, alignment)
    np.testing.assert_allclose(found, logits / norms[:, None] / 0.1, rtol=1e-4)
    gradient = jax.grad(lambda z: slca.normalize_logits(z, tasks, is_seen, TASKS, alignment)[:, :4].sum())(logits)
    assert np.isfinite(gradient).all()


def test_the_alignment_is_sgd_on_draws_of_the_classes_seen():
    rows, labels = samples()
    statistics = statistics_of(rows, labels)
    alignment, key = slca.Alignment(3, 0.2, 6, 0.0), jax.random.key(8)
    head = {"kernel": RNG.normal(size=(WIDTH, CLASSES)).astype(np.float32), "bias": np.zeros(CLASSES, np.float32)}
    at = context(2, 4, task=1).replace(key=key)
    found = jax.jit(lambda h, s: slca.align(h, s, at, TASKS, alignment))(head, statistics)
    assert np.abs(found["kernel"][:, :4] - head["kernel"][:, :4]).max() > 0.1
    weights = {name: np.float64(leaf) for name, leaf in head.items()}
    velocity = {name: 0.0 for name in weights}
    factors = np.float64(slca.covariance_factors(statistics))
    means = np.stack([np.float64(rows[labels == c]).mean(axis=0) for c in range(4)])
    shrunk = means * np.array([0.95, 0.95, 1.0, 1.0])[:, None]  # 0.9 + 0.1 * 1/2, 0.9 + 0.1 * 2/2
    for epoch in range(3):
        keys = jax.random.split(jax.random.fold_in(key, epoch), 2)
        noise = np.float64(jax.random.normal(keys[0], (CLASSES, 6, WIDTH)))[:4]
        drawn = shrunk[:, None] + np.einsum("cde,cse->csd", factors[:4], noise)
        order = np.argsort(np.asarray(jax.random.uniform(keys[1], (CLASSES, 6)))[:4].ravel())
        for step in range(4):
            part = order[6 * step : 6 * step + 6]
            x, y = drawn.reshape(-1, WIDTH)[part], part // 6
            logits = (x @ weights["kernel"] + weights["bias"])[:, :4]
            error = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True) - np.eye(4)[y]
            error = np.pad(error, ((0, 0), (0, 1))) / 6
            gradients = {"kernel": x.T @ error, "bias": error.sum(axis=0)}
            for name, gradient in gradients.items():
                velocity[name] = 0.9 * velocity[name] + gradient + 5e-4 * weights[name]
                weights[name] = weights[name] - 0.2 * (1 + np.cos(np.pi * epoch / 3)) / 2 * velocity[name]
    for name, expected in weights.items():
        np.testing.assert_allclose(found[name], expected, rtol=2e-3, atol=2e-4)


def test_a_run_trains_all_weights_and_predicts_with_the_aligned_head(tmp_path):
    experiment = build("slca", **{"learner.samples": 8, "train.epochs": 1, "optim.learning_rate": 1.0})
    run = train(experiment, tmp_path)
    assert not run.compiles_again
    assert not run.frozen and run.after["student"]["state"]["statistics"]["counts"].tolist() == [5, 4, 6, 4]
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        first = jax.device_get(checkpoints.restore_task(0, experiment.abstract_variables()[0]))["student"]
    aligned, trained = first["state"]["head"]["aligned"], first["head"]["trained"]["linear"]
    jax.tree.map(np.testing.assert_array_equal, aligned, trained)
    own = join(run.frozen, run.after)["student"]
    aligned, trained = own["state"]["head"]["aligned"], own["head"]["trained"]["linear"]
    assert np.abs(aligned["kernel"] - trained["kernel"]).max() > 1e-3
    for is_training, layer in ((True, trained), (False, aligned)):
        out = outputs(experiment, own, is_training)
        expected = np.float64(out["class_token"]) @ layer["kernel"] + layer["bias"]
        np.testing.assert_allclose(out["logits"], expected, rtol=1e-3, atol=1e-4)
    features = np.float64(outputs(experiment, own)["class_token"])[LABELS == 2]
    sums = own["state"]["statistics"]["sums"]
    np.testing.assert_allclose(sums[2], features.sum(axis=0), rtol=1e-3, atol=1e-3)
    earlier = first["state"]["statistics"]
    np.testing.assert_array_equal(sums[:2], earlier["sums"][:2])  # of the backbone of their own task
    assert experiment.method.models.student.learner.learning_rate_factor(("backbone", "norm")) == pytest.approx(0.01)
