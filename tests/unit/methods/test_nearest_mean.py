"""Nearest class mean: every training picture counts once, as it would be tested, and the nearest mean wins."""

import jax
import numpy as np
import pytest

from cdl_jax import config as base
from cdl_jax import plugins
from cdl_jax.data.stream import Dataset, Split, split_into_tasks
from cdl_jax.errors import UserError
from cdl_jax.losses import Context
from cdl_jax.models import weights
from cdl_jax.training import steps as trainer
from cdl_jax.training.program import Program

SIDE, BATCH = 8, 4


def images(labels, seed):
    """Pictures of a class are one random picture with noise, so that the means are worth something."""
    rng = np.random.default_rng(seed)
    kinds = np.random.default_rng(1).integers(0, 200, (4, SIDE, SIDE, 3))
    return (kinds[labels] + rng.integers(0, 56, (len(labels), SIDE, SIDE, 3))).astype(np.uint8)


def stream():
    """Two tasks of two classes; 7 and 9 training pictures, which fill no whole number of batches."""
    train, test = np.array([0, 1, 0, 1, 1, 0, 0, *[2] * 4, *[3] * 5]), np.arange(20) % 4
    splits = (Split(labels.astype(np.int32), images(labels, 2 + i)) for i, labels in enumerate((train, test)))
    return split_into_tasks(Dataset("squares", ("a", "b", "c", "d"), *splits), num_tasks=2)


def program(data, **changes):
    config = base.default("nearest_mean", data="glyph_mini", network="mini_student")
    config.network.update(dim=8, depth=1, heads=2, patch_size=4, image_size=SIDE, weights="random")
    config.augment.update(train="shift", flip=True)  # neither must reach the means
    config.train.batch_size, config.devices = BATCH, 1
    config.update_from_flattened_dict(changes)
    return Program(config, data)


def learnt(own, task, live, frozen, start=0):
    """The variables after the task's phase, from batch `start` on, and the number of pictures that were added."""
    (phase,) = own.method.phases
    state, added = own.task_state(live, frozen), 0
    run, data = own.train_step(0, state, frozen), own.train_source.data
    items, steps, _ = own.train_batches(task, phase, 0, 0, start)
    for step, item in enumerate(items, start):
        state = run(state, frozen, data, item, place(task, step), own.seed)
        added = float(state.sums[0]["images"])
    assert (steps, phase.epochs) == (-(-len(task.train) // BATCH), 1) and own.steps(task, phase) == steps
    return state.live, added


def place(task, step=0):
    return trainer.position(task, step=step, steps=9)


def features(own, frozen, pictures):
    run = jax.jit(lambda x: own.method.backbone.apply({"params": frozen["network"]["backbone"]}, x)[0])
    return np.asarray(run(pictures.astype(np.float32) / 255), np.float64)


@pytest.mark.parametrize("distance", ["cosine", "euclidean"])
@pytest.mark.parametrize("limit", [4096, 0], ids=["resident", "streamed"])
def test_all_pictures_make_the_means_and_the_nearest_mean_wins(distance, limit):
    data = stream()
    own = program(data, **{"nearest_mean.distance": distance, "resident_limit_mb": limit})
    own.place_data()
    live, frozen = own.initial_variables()
    assert set(live["network"]) == {"means"} and set(frozen["network"]) == {"backbone"}
    for task, count in zip(data.tasks, (7, 9), strict=True):
        live, added = learnt(own, task, live, frozen)
        assert added == count
        seen = data.train.labels < task.end
        rows = features(own, frozen, data.train.images[seen])
        means = np.array([rows[data.train.labels[seen] == label].mean(axis=0) for label in range(task.end)])
        found = live["network"]["means"]
        np.testing.assert_array_equal(found["counts"], np.bincount(data.train.labels[seen], minlength=4))
        got = np.asarray(found["sums"])[: task.end] / np.asarray(found["counts"])[: task.end, None]
        np.testing.assert_allclose(got, means, rtol=1e-4, atol=1e-5)
    tested = features(own, frozen, data.test.images)
    if distance == "cosine":
        norms = np.linalg.norm(tested, axis=1)[:, None] * np.linalg.norm(means, axis=1)
        wanted = tested @ means.T / norms
    else:
        wanted = -np.square(tested[:, None] - means).sum(axis=2)
    context = Context(**place(data.tasks[1]), key=jax.random.key(0))
    logits, _ = own.method.predict(
        {"network": {**frozen["network"], **live["network"]}}, data.test.images / 255, context
    )
    np.testing.assert_allclose(logits["network"], wanted, rtol=1e-3, atol=1e-4)
    ((accuracy, *_),) = own.evaluate(live, frozen, data.tasks, place(data.tasks[1]))
    right = wanted.argmax(axis=1) == data.test.labels
    expected = [100 * right[data.test.labels // 2 == task].mean() for task in (0, 1)]
    assert accuracy["network"] == pytest.approx(expected) and min(expected) > 50


def test_any_family_tells_features():
    data = stream()
    config = base.default("nearest_mean", data="glyph_mini", network="resnet20")
    assert config.network.weights == ""  # to be named
    config.network.update(depths=(1, 1, 1), widths=(4, 4, 8), image_size=SIDE, weights="random")
    config.train.batch_size, config.devices = 8, 1
    own = Program(config, data)
    own.place_data()
    live, frozen = own.initial_variables()
    assert set(live["network"]) == {"means"} and set(frozen["network"]) == {"backbone", "batch_stats"}
    task, (phase,) = data.tasks[0], own.method.phases
    state, run = own.task_state(live, frozen), own.train_step(0, own.task_state(live, frozen), frozen)
    for item in own.train_batches(task, phase, 0, 0, 0)[0]:
        state = run(state, frozen, own.train_source.data, item, place(task), own.seed)
    variables = {"params": frozen["network"]["backbone"], "batch_stats": frozen["network"]["batch_stats"]}
    seen = data.train.labels < 2
    _, out = jax.jit(own.method.backbone.apply)(variables, data.train.images[seen].astype(np.float32) / 255)
    rows = np.asarray(out["features"])
    wanted = [rows[data.train.labels[seen] == label].sum(axis=0) for label in range(2)]
    np.testing.assert_allclose(state.live["network"]["means"]["sums"][:2], wanted, rtol=1e-4, atol=1e-5)


def test_several_seeds_share_a_file_whose_head_is_of_other_classes(tmp_path):
    config = base.default("nearest_mean", data="glyph_mini", network="resnet20")
    config.network.update(depths=(1, 1, 1), widths=(4, 4, 8), image_size=SIDE, weights=str(tmp_path / "weights.npz"))
    config.train.batch_size, config.devices, config.seeds = 8, 1, (0, 1)
    saved = (
        plugins.load_plugin("models", "resnet")
        .build(config.network, 9)
        .init(jax.random.key(0), np.zeros((1, SIDE, SIDE, 3)))
    )
    weights.save(tmp_path / "weights.npz", saved)
    own = Program(config, stream())
    own.place_data()
    live, frozen = own.initial_variables()
    assert live["network"]["means"]["sums"].shape == (2, 4, 8)
    head = frozen["network"]["backbone"]["tail"]["classifier"]
    assert {name: leaf.shape[-1] for name, leaf in head.items()} == {"kernel": 4, "bias": 4} and not head[
        "kernel"
    ].any()
    stem = jax.tree.leaves(frozen["network"]["backbone"]["stem"])[0]
    np.testing.assert_array_equal(stem, jax.tree.leaves(saved["params"]["stem"])[0])


def test_it_goes_on_where_it_was_stopped():
    data = stream()
    own = program(data)
    own.place_data()
    live, frozen = own.initial_variables()
    _, added = learnt(own, data.tasks[1], live, frozen, start=2)
    assert added == 1  # nine pictures less two batches


def test_a_class_without_pictures_is_never_the_nearest():
    data = stream()
    own = program(data)
    own.place_data()
    live, frozen = own.initial_variables()
    live, _ = learnt(own, data.tasks[0], live, frozen)
    context = Context(**place(data.tasks[1]), key=jax.random.key(0))
    logits, _ = own.method.predict(
        {"network": {**frozen["network"], **live["network"]}}, data.test.images / 255, context
    )
    assert np.asarray(logits["network"])[:, 2:].max() < -1e30 < np.asarray(logits["network"])[:, :2].min()


def test_a_batch_may_be_larger_than_a_task_and_other_distances_are_refused():
    assert program(stream(), **{"train.batch_size": 64}).method.networks == ("network",)
    with pytest.raises(UserError, match="nearest_mean.distance='angle': use 'cosine' or 'euclidean'"):
        program(stream(), **{"nearest_mean.distance": "angle"})
