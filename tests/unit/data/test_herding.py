"""Herding: selected images, the number of rows in later tasks, and the batches."""

import numpy as np
import pytest

from cdl_jax.data import herding, replay, stream
from cdl_jax.data.batch_plan import BatchPlan
from cdl_jax.errors import UserError
from cdl_jax.methods.base import Phase, Replay

RNG = np.random.default_rng(4)


def herd_by_definition(features, count):
    """Herds by the definition, one candidate after the other."""
    mean, picked = features.mean(axis=0), []
    for _ in range(count):
        best, least = None, np.inf
        for i in set(range(len(features))) - set(picked):
            away = np.linalg.norm(features[[*picked, i]].mean(axis=0) - mean)
            if away < least:
                best, least = i, away
        picked.append(best)
    return picked


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_each_pick_brings_the_mean_closest_to_the_class_mean(offset):
    features = (RNG.normal(size=(25, 6)) + offset).astype(np.float32)
    wanted = herd_by_definition(features.astype(np.float64), 12)
    assert herding.herd(features, 12).tolist() == wanted
    assert herding.herd(features, 5).tolist() == wanted[:5]  # a smaller memory is the head of a larger one
    assert sorted(herding.herd(features, 99)) == list(range(25))
    # Better than chance: twelve of 25 drawn at random are further from the mean.
    away = lambda rows: np.linalg.norm(features[rows].mean(axis=0) - features.mean(axis=0))  # noqa: E731
    assert away(wanted) < min(away(RNG.permutation(25)[:12]) for _ in range(50))


def test_ties_go_to_the_first_image_and_none_is_picked_twice():
    assert herding.herd(np.ones((4, 3)), 4).tolist() == [0, 1, 2, 3]


def test_update_memory_replaces_the_rows_of_the_given_classes():
    memory = np.full((4, 3), -1, np.int32)
    rows, labels = np.arange(10, 20, dtype=np.int32), np.array([2] * 8 + [1] * 2)
    features = RNG.normal(size=(10, 5))
    new = herding.update_memory(memory, rows, labels, features)
    assert (memory == -1).all() and new.dtype == np.int32
    assert new[2].tolist() == [10 + i for i in herd_by_definition(features[:8], 3)]
    assert sorted(new[1][:2]) == [18, 19] and new[1][2] == -1
    assert (new[[0, 3]] == -1).all()
    again = herding.update_memory(new, rows[8:], labels[8:], -features[8:])
    assert np.array_equal(again[2], new[2])


def test_a_memory_that_shrinks_uses_fewer_rows_per_class():
    memory = np.arange(12, dtype=np.int32).reshape(3, 4)
    memory[1, 2:] = -1
    assert replay.herded_rows(memory, replay.herded_lengths(8, 2)).tolist() == [0, 1, 2, 3, 4, 5]
    assert replay.herded_rows(memory, replay.herded_lengths(5, 3)).tolist() == [0, 1, 4, 5, 8]
    assert replay.herded_rows(memory, replay.herded_lengths(5, 3, per_class=1)).tolist() == [0, 4, 8]
    assert replay.herded_rows(memory, []).tolist() == []


@pytest.fixture(scope="module")
def plan_and_memory():
    """Returns a plan of two tasks, and a memory of ten images of each class.

    A task has two classes with 12 images each.
    """
    labels = np.tile(np.arange(4, dtype=np.int32), 12)
    split = stream.Split(labels, images=np.zeros((48, 8, 8, 3), np.uint8))
    rows = [np.flatnonzero(labels // 2 == task).astype(np.int32) for task in range(2)]
    tasks = tuple(stream.Task(i, (2 * i, 2 * i + 1), 2 * i, task_rows, task_rows) for i, task_rows in enumerate(rows))
    names = tuple("abcd")
    memory = np.stack([np.flatnonzero(labels == c)[:10] for c in range(4)]).astype(np.int32)
    return BatchPlan.build(stream.Stream("four", names, tuple(range(4)), tasks, split, split), 8), memory


def test_herded_images_join_the_tasks_images(plan_and_memory):
    plan, memory = plan_and_memory
    phase = Phase("replay", 2, (), tasks="later", replay=Replay(10, 4, "herding"))
    order = plan.order(1, phase, range(2), 3, memory)
    assert order.shape == (6, 12) and plan.images_per_step(phase) == 12
    labels = plan.stream.train.labels[order]
    assert (labels[:, :8] >= 2).all() and (labels[:, 8:] < 2).all()
    assert set(order[:, 8:].ravel()) == {*memory[0, :5], *memory[1, :5]}
    assert np.array_equal(order, plan.order(1, phase, range(2), 3, memory))
    # The task's images are in the same order without a memory.
    assert np.array_equal(order[:, :8], plan.order(1, Phase("plain", 2, ()), range(2), 3))


@pytest.mark.parametrize(("per_class", "each"), [(0, 5), (2, 2)])
def test_a_balanced_phase_has_every_class_equally_often(plan_and_memory, per_class, each):
    plan, memory = plan_and_memory
    phase = Phase("balanced", 4, (), balanced=True, replay=Replay(20, 0, "herding", per_class))
    plan.check(phase)
    steps = max(4 * each // 8, 1)
    order = plan.order(1, phase, range(4), 3, memory)
    assert (
        order.shape == (4 * steps, 8) and plan.batch_sizes(1, phase) == [8] * steps and plan.images_per_step(phase) == 8
    )
    passes = order.ravel()[: order.size // (4 * each) * 4 * each].reshape(-1, 4 * each)
    assert len(passes) >= 1
    for batch_rows in passes:
        assert sorted(batch_rows) == sorted(memory[:, :each].ravel())
        assert np.bincount(plan.stream.train.labels[batch_rows]).tolist() == [each] * 4
    assert set(plan.stream.train.labels[plan.order(0, phase, range(4), 3, memory)].ravel()) == {0, 1}


def test_an_empty_memory_raises_an_error(plan_and_memory):
    plan, _ = plan_and_memory
    phase = Phase("replay", 1, (), tasks="later", replay=Replay(10, 4, "herding"))
    with pytest.raises(UserError, match="replay memory is empty"):
        plan.order(1, phase, range(1), 0, np.full((4, 5), -1, np.int32))


def test_a_phase_may_begin_with_a_later_task():
    phase = Phase("balanced", 4, (), tasks="later", since=3)
    assert [phase.epochs_of(task) for task in range(5)] == [0, 0, 0, 4, 4]
