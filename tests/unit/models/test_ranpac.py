"""RanPAC: ridge regression on a random projection.

The ridge is chosen on a fifth of a task's images.
"""

import jax
import numpy as np
import pytest

from cdl_jax.methods.base import join
from cdl_jax.models.learners import ranpac
from cdl_jax.run import loop
from cdl_jax.runtime.signals import RunInterrupted
from cdl_jax.training.compiled import CompiledSteps
from tests.support.contexts import context
from tests.support.learner_runs import DIM, LABELS, build, outputs, train
from tests.support.signals import After

WIDTH = 16


def chosen_ridge(projected, labels):
    """Returns the ridge of least error on the rows that are held out, in float64."""
    x, y = np.float64(projected), np.eye(4)[labels]
    held_out = np.array(ranpac.select_held_out(np.arange(len(x))))
    errors = []
    for ridge in ranpac.RIDGES:
        errors.append(((x[held_out] @ ridge_kernel(x[~held_out], y[~held_out], ridge) - y[held_out]) ** 2).mean())
    return ranpac.RIDGES[np.argmin(errors)]


def ridge_kernel(x, y, ridge):
    gram = x.T @ x
    ridge = max(ridge, 2.0**-23 * np.trace(gram))
    return np.linalg.solve(gram + ridge * np.eye(len(gram)), x.T @ y)


def test_classes_that_take_turns_are_all_held_out():
    held_out = np.array(ranpac.select_held_out(np.arange(1000)))
    assert held_out.reshape(-1, 5).sum(axis=1).tolist() == [1] * 200  # one of each five
    assert {*np.flatnonzero(held_out) % 10} == {*range(10)}


def test_the_head_is_the_ridge_regression_on_projected_features_of_the_first_tasks_adapters(tmp_path):
    experiment = build("ranpac", **{"learner.projection": WIDTH, "learner.rank": 2, "train.epochs": 1})
    assert experiment.method.phases[0].tasks == "first"
    run = train(experiment, tmp_path)
    assert not run.compiles_again
    before, after = run.before["student"], run.after["student"]
    assert set(before["prompts"]) == {"down", "down_bias", "up", "up_bias"} and not before["prompts"]["up"].any()
    assert np.abs(after["prompts"]["up"]).max() > 1e-5
    state = after["state"]["head"]
    np.testing.assert_array_equal(state["projection"], before["state"]["head"]["projection"])
    assert state["projection"].shape == (DIM, WIDTH) and 0.8 < state["projection"].std() < 1.2
    own = join(run.frozen, run.after)["student"]
    features = np.float64(outputs(experiment, own)["class_token"])
    projected = np.maximum(features @ state["projection"], 0)
    ridge = chosen_ridge(projected[LABELS >= 2], LABELS[LABELS >= 2])  # of the images of the last task
    assert 1e-8 < ridge < 1e8
    kernel = ridge_kernel(projected, np.eye(4)[LABELS], ridge)
    logits = outputs(experiment, own)["logits"]
    np.testing.assert_allclose(logits, projected @ kernel, rtol=5e-3, atol=5e-3)
    classifier = after["head"]["classifier"]
    own["prompts"] = {**after["prompts"], "up": 0 * after["prompts"]["up"]}  # whose training has dropout
    trained = outputs(experiment, own, train=True)
    features = np.float64(trained["class_token"])
    norms = np.linalg.norm(features, axis=1)[:, None] * np.linalg.norm(classifier["kernel"], axis=0)
    expected = classifier["scale"] * (features @ classifier["kernel"]) / norms
    np.testing.assert_allclose(trained["logits"], expected, rtol=1e-3, atol=1e-4)


def batches(rows, labels, size=4):
    """Yields batches with padding rows that must not count."""
    for start in range(0, len(rows), size):
        part, own = rows[start : start + size], labels[start : start + size]
        pad = size - len(part)
        weight = np.float32([*[1] * len(part), *[0] * pad])
        yield np.concatenate([part, 9 * np.ones((pad, rows.shape[1]), np.float32)]), np.pad(own, (0, pad)), weight


def test_the_ridge_of_each_task_is_chosen_on_its_own_images():
    rng = np.random.default_rng(5)
    head = ranpac.RidgeHead(4, 0, 0.0, False)
    statistics, seen_rows, seen_labels, ridges = head.init_statistics(6), [], [], []
    accumulate, fit = jax.jit(head.accumulate), jax.jit(head.fit)
    means = rng.normal(size=(4, 6))
    for task, noise in enumerate((0.01, 5.0)):
        labels = rng.integers(2 * task, 2 * task + 2, 33).astype(np.int32)
        rows = (means[labels] + noise * rng.normal(size=(33, 6))).astype(np.float32)
        for part, own, weight in batches(rows, labels):
            at = context(2 * task, 2 * task + 2, task=task).replace(weight=weight)
            statistics = accumulate(statistics, part, own, at)
        seen_rows.append(rows)
        seen_labels.append(labels)
        ridges.append(chosen_ridge(rows, labels))
        assert float(ranpac.choose_ridge(statistics)) == pytest.approx(ridges[-1], rel=1e-5)
        kernel = fit({"params": {}, "state": {}}, statistics, context())["state"]["kernel"]
        x, y = np.float64(np.concatenate(seen_rows)), np.eye(4)[np.concatenate(seen_labels)]
        np.testing.assert_allclose(kernel, ridge_kernel(x, y, ridges[-1]), rtol=1e-3, atol=1e-4)
    assert ridges[0] < ridges[1]


def test_more_features_than_images_have_a_finite_solution():
    rng = np.random.default_rng(0)
    features = np.maximum(rng.normal(1, 1, (30, 200)), 0).astype(np.float32) * 1000
    targets = rng.normal(size=(30, 4)).astype(np.float32)
    kernel = jax.jit(ranpac.solve_ridge)(features.T @ features, features.T @ targets, 1e-8)
    assert np.isfinite(kernel).all()
    np.testing.assert_allclose(features @ kernel, targets, atol=0.1)


def test_a_given_ridge_and_features_without_projection_also_after_a_stop(tmp_path):
    changes = {"learner.projection": 0, "learner.adaptation": "none", "learner.ridge": 2.0}
    experiment = build("ranpac", **changes)
    steps = CompiledSteps(experiment)
    run = train(experiment, tmp_path, steps)
    stopped = tmp_path / "stopped"
    stopped.mkdir()
    with pytest.raises(RunInterrupted):
        loop.train(experiment, stopped, After(5), steps)  # within the pass over the images of the second task
    jax.tree.map(np.testing.assert_array_equal, train(experiment, stopped, steps).after, run.after)
    assert not jax.tree.leaves((run.after["student"]["prompts"], run.after["student"]["head"]))
    own = join(run.frozen, run.after)["student"]
    out = outputs(experiment, own)
    x = np.float64(out["class_token"])
    kernel = np.linalg.solve(x.T @ x + 2 * np.eye(DIM), x.T @ np.eye(4)[LABELS])
    np.testing.assert_allclose(out["logits"], x @ kernel, rtol=1e-3, atol=1e-4)
