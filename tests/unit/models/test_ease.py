"""EASE: each task's adapters, prototypes in all spaces, weighted sums of cosines."""

import jax
import numpy as np

from cdl_jax.methods.base import join
from cdl_jax.models.learners import ease
from cdl_jax.models.learners.shared.bottlenecks import parallel_adapters
from cdl_jax.runtime.checkpoint import Checkpoints
from tests.support.learner_runs import DIM, LABELS, build, inputs_of, network_of, outputs, train

RNG = np.random.default_rng(7)


def cosine(x, y):
    return x @ y / np.linalg.norm(x) / np.linalg.norm(y)


def complete(means, tasks, last):
    """Returns the prototypes `[classes, tasks, dim]` of the classes seen, one by one."""
    found = np.zeros_like(means)
    seen = np.flatnonzero(tasks <= last)
    for c in seen:
        for space in range(last + 1):
            if space <= tasks[c]:
                found[c, space] = means[c, space]
                continue
            later = [k for k in seen if tasks[k] >= space]
            scores = np.exp([cosine(means[c, tasks[c]], means[k, tasks[c]]) for k in later])
            found[c, space] = (scores / scores.sum()) @ means[later, space]
    return found


def test_prototypes_in_later_spaces_are_weighted_by_the_similarity_in_the_classs_own():
    tasks = np.array([0, 2, 1, 0, 1, 2, 3])
    means = RNG.normal(1, 1, (7, 4, 5))
    for last in range(4):
        is_seen = tasks <= last
        found = ease.complete_prototypes(np.float32(means * is_seen[:, None, None]), tasks * is_seen, is_seen, last)
        np.testing.assert_allclose(found, complete(means, tasks, last), rtol=1e-4, atol=1e-5)


def test_a_run_has_adapters_and_prototypes_of_each_task(tmp_path):
    sizes = {"learner.rank": 2, "learner.dropout": 0.0, "learner.alpha": 0.25, "learner.scale": 2.0}
    experiment = build("ease", **sizes, **{"train.epochs": 1, "optim.name": "adam", "optim.learning_rate": 0.05})
    run = train(experiment, tmp_path)
    assert not run.compiles_again
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        first = jax.device_get(checkpoints.restore_task(0, experiment.abstract_variables()[0]))["student"]
    student = run.after["student"]
    adapters = student["state"]["prompts"]
    for name, rows in adapters.items():
        np.testing.assert_array_equal(rows[0], first["prompts"][name])
        np.testing.assert_array_equal(rows[1], student["prompts"][name])
        assert all(np.abs(row).max() > 1e-4 for row in rows)
    assert np.abs(adapters["down"][0] - adapters["down"][1]).max() > 0.1  # the second task starts anew
    own, network = join(run.frozen, run.after)["student"], network_of(experiment)
    spaces = []
    for task in (0, 1):
        adapted = parallel_adapters({name: rows[task] for name, rows in adapters.items()}, 2.0, 0.0, None)
        apply = jax.jit(lambda p, a: network.backbone.apply({"params": p}, inputs_of(experiment), adapters=a)[0])
        spaces.append(np.float64(apply(own["backbone"], adapted)))
    features = np.stack(spaces, axis=1)  # [images, spaces, dim]
    assert np.abs(features[:, 0] - features[:, 1]).max() > 1e-2
    means = np.stack([features[LABELS == c].mean(axis=0) for c in range(4)])
    prototypes = complete(means, np.array([0, 0, 1, 1]), 1)
    state = student["state"]["head"]
    np.testing.assert_allclose(state["prototypes"], prototypes, rtol=1e-3, atol=1e-3)
    assert (state["tasks"].tolist(), state["last"]) == ([0, 0, 1, 1], 1)
    np.testing.assert_allclose(first["state"]["head"]["prototypes"][:2, 0], means[:2, 0], rtol=1e-3, atol=1e-3)
    assert not first["state"]["head"]["prototypes"][:, 1].any() and not first["state"]["head"]["prototypes"][2:].any()
    classifier = student["head"]["classifier"]
    expected = np.array(
        [
            [sum((1.0 if s == c // 2 else 0.25) * cosine(image[s], prototypes[c, s]) for s in (0, 1)) for c in range(4)]
            for image in features
        ]
    )
    out = outputs(experiment, own)
    np.testing.assert_allclose(out["logits"], classifier["scale"] * expected, rtol=1e-3, atol=1e-3)
    trained = outputs(experiment, own, train=True)["logits"]
    expected = [[cosine(image[1], row) for row in np.float64(classifier["kernel"]).T] for image in features]
    np.testing.assert_allclose(trained, classifier["scale"] * np.array(expected), rtol=1e-3, atol=1e-3)
    assert classifier["kernel"].shape == (DIM, 4)
