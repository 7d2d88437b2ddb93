"""Nearest class mean: each training image counts once, without augmentation."""

import jax
import numpy as np
import pytest

from cdl_jax import config as base
from cdl_jax import plugins
from cdl_jax.data.stream import Dataset, Split, split_into_tasks
from cdl_jax.errors import UserError
from cdl_jax.losses import Context
from cdl_jax.models import weights
from cdl_jax.training import state as state_module
from cdl_jax.training.compiled import CompiledSteps
from cdl_jax.training.evaluator import Evaluator
from cdl_jax.training.experiment import Experiment

SIDE, BATCH = 8, 4


def images(labels, seed):
    """Returns each class's random image with noise, so that means are informative."""
    rng = np.random.default_rng(seed)
    prototypes = np.random.default_rng(1).integers(0, 200, (4, SIDE, SIDE, 3))
    return (prototypes[labels] + rng.integers(0, 56, (len(labels), SIDE, SIDE, 3))).astype(np.uint8)


def stream():
    """Returns two tasks of two classes.

    The tasks have 7 and 9 training images, which leave the last batch incomplete.
    """
    train, test = np.array([0, 1, 0, 1, 1, 0, 0, *[2] * 4, *[3] * 5]), np.arange(20) % 4
    splits = (Split(labels.astype(np.int32), images(labels, 2 + i)) for i, labels in enumerate((train, test)))
    return split_into_tasks(Dataset("squares", ("a", "b", "c", "d"), *splits), num_tasks=2)


def build_experiment(data, **changes):
    config = base.default("nearest_mean", data="glyph_mini", network="mini_student")
    config.network.update(dim=8, depth=1, heads=2, patch_size=4, image_size=SIDE, weights="random")
    config.augment.update(train="shift", flip=True)  # neither may affect the means
    config.train.batch_size, config.devices = BATCH, 1
    config.update_from_flattened_dict(changes)
    return Experiment.build(config, data)


def train(steps, task, mutable, frozen, start=0):
    """Trains from batch `start`; returns (mutable variables, number of images added)."""
    (phase,) = steps.experiment.method.phases
    state, added = steps.task_state(mutable), 0
    run, data = steps.train_step(0), steps.train_loader.data
    for step, batch in enumerate(steps.train_batches(task, phase, 0, start), start):
        state = run(state, frozen, data, batch, position(task, step), steps.experiment.seed)
        added = float(state.metric_sums[0]["images"])
    assert phase.epochs == 1 and steps.experiment.steps_per_epoch(task, phase) == -(-len(task.train) // BATCH)
    return state.mutable, added


def position(task, step=0):
    return state_module.position(task, step=step, steps=9)


def features(method, frozen, images):
    run = jax.jit(lambda x: method.backbone.apply({"params": frozen["network"]["backbone"]}, x)[0])
    return np.asarray(run(images.astype(np.float32) / 255), np.float64)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("limit", [4096, 0], ids=["resident", "streamed"])
def test_means_are_of_all_images_and_the_nearest_mean_is_predicted(distance, limit):
    data = stream()
    experiment = build_experiment(data, **{"nearest_mean.distance": distance, "device_data_limit_mb": limit})
    steps = CompiledSteps(experiment)
    mutable, frozen = experiment.initial_variables()
    assert set(mutable["network"]) == {"means"} and set(frozen["network"]) == {"backbone"}
    for task, count in zip(data.tasks, (7, 9), strict=True):
        mutable, added = train(steps, task, mutable, frozen)
        assert added == count
        is_seen = data.train.labels < task.end
        rows = features(experiment.method, frozen, data.train.images[is_seen])
        means = np.array([rows[data.train.labels[is_seen] == label].mean(axis=0) for label in range(task.end)])
        stored = mutable["network"]["means"]
        np.testing.assert_array_equal(stored["counts"], np.bincount(data.train.labels[is_seen], minlength=4))
        stored_means = np.asarray(stored["sums"])[: task.end] / np.asarray(stored["counts"])[: task.end, None]
        np.testing.assert_allclose(stored_means, means, rtol=1e-4, atol=1e-5)
    test_features = features(experiment.method, frozen, data.test.images)
    if distance == "cosine":
        norms = np.linalg.norm(test_features, axis=1)[:, None] * np.linalg.norm(means, axis=1)
        expected_logits = test_features @ means.T / norms
    else:
        expected_logits = -np.square(test_features[:, None] - means).sum(axis=2)
    context = Context(**position(data.tasks[1]), key=jax.random.key(0))
    logits, _ = experiment.method.predict(
        {"network": {**frozen["network"], **mutable["network"]}}, data.test.images / 255, context
    )
    np.testing.assert_allclose(logits["network"], expected_logits, rtol=1e-3, atol=1e-4)
    ((accuracy, *_),) = Evaluator(steps).evaluate(mutable, frozen, data.tasks, position(data.tasks[1]))
    correct = expected_logits.argmax(axis=1) == data.test.labels
    expected = [100 * correct[data.test.labels // 2 == task].mean() for task in (0, 1)]
    assert accuracy["network"] == pytest.approx(expected) and min(expected) > 50


def test_features_of_a_convolutional_network():
    data = stream()
    config = base.default("nearest_mean", data="glyph_mini", network="resnet20")
    assert config.network.weights == ""  # must be set
    config.network.update(depths=(1, 1, 1), widths=(4, 4, 8), image_size=SIDE, weights="random")
    config.train.batch_size, config.devices = 8, 1
    experiment = Experiment.build(config, data)
    steps = CompiledSteps(experiment)
    mutable, frozen = experiment.initial_variables()
    assert set(mutable["network"]) == {"means"} and set(frozen["network"]) == {"backbone", "batch_stats"}
    task, (phase,) = data.tasks[0], experiment.method.phases
    state, run = steps.task_state(mutable), steps.train_step(0)
    for batch in steps.train_batches(task, phase, 0, 0):
        state = run(state, frozen, steps.train_loader.data, batch, position(task), experiment.seed)
    variables = {"params": frozen["network"]["backbone"], "batch_stats": frozen["network"]["batch_stats"]}
    is_seen = data.train.labels < 2
    _, out = jax.jit(experiment.method.backbone.apply)(variables, data.train.images[is_seen].astype(np.float32) / 255)
    rows = np.asarray(out["features"])
    expected = [rows[data.train.labels[is_seen] == label].sum(axis=0) for label in range(2)]
    np.testing.assert_allclose(state.mutable["network"]["means"]["sums"][:2], expected, rtol=1e-4, atol=1e-5)


def test_seeds_share_a_file_with_a_head_of_other_classes(tmp_path):
    config = base.default("nearest_mean", data="glyph_mini", network="resnet20")
    config.network.update(depths=(1, 1, 1), widths=(4, 4, 8), image_size=SIDE, weights=str(tmp_path / "weights.npz"))
    config.train.batch_size, config.devices, config.seeds = 8, 1, (0, 1)
    saved = (
        plugins.load_plugin("models", "resnet")
        .build(config.network, 9)
        .init(jax.random.key(0), np.zeros((1, SIDE, SIDE, 3)))
    )
    weights.save(tmp_path / "weights.npz", saved)
    experiment = Experiment.build(config, stream())
    mutable, frozen = experiment.initial_variables()
    assert mutable["network"]["means"]["sums"].shape == (2, 4, 8)
    head = frozen["network"]["backbone"]["tail"]["classifier"]
    assert {name: leaf.shape[-1] for name, leaf in head.items()} == {"kernel": 4, "bias": 4} and not head[
        "kernel"
    ].any()
    stem = jax.tree.leaves(frozen["network"]["backbone"]["stem"])[0]
    np.testing.assert_array_equal(stem, jax.tree.leaves(saved["params"]["stem"])[0])


def test_training_resumes_at_a_batch():
    data = stream()
    experiment = build_experiment(data)
    steps = CompiledSteps(experiment)
    mutable, frozen = experiment.initial_variables()
    _, added = train(steps, data.tasks[1], mutable, frozen, start=2)
    assert added == 1  # 9 images minus two batches of 4


def test_class_without_images_is_never_predicted():
    data = stream()
    experiment = build_experiment(data)
    steps = CompiledSteps(experiment)
    mutable, frozen = experiment.initial_variables()
    mutable, _ = train(steps, data.tasks[0], mutable, frozen)
    context = Context(**position(data.tasks[1]), key=jax.random.key(0))
    logits, _ = experiment.method.predict(
        {"network": {**frozen["network"], **mutable["network"]}}, data.test.images / 255, context
    )
    assert np.asarray(logits["network"])[:, 2:].max() < -1e30 < np.asarray(logits["network"])[:, :2].min()
    variables = {"network": {**frozen["network"], **mutable["network"]}}
    outputs = experiment.method.teacher_outputs("network", variables, data.test.images / 255, context)
    taught = np.asarray(outputs["logits"])
    assert np.array_equal(taught[:, 2], taught[:, :2].min(axis=1)) and np.array_equal(taught[:, 3], taught[:, 2])


def test_batch_may_exceed_a_task_and_unknown_distances_are_refused():
    assert build_experiment(stream(), **{"train.batch_size": 64}).method.networks == ("network",)
    with pytest.raises(UserError, match="nearest_mean.distance='angle': use 'cosine' or 'euclidean'"):
        build_experiment(stream(), **{"nearest_mean.distance": "angle"})
