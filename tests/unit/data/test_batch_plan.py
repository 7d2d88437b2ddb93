"""Columns of a batch: rows of the task, of the memory, and of public images."""

import numpy as np
import pytest

from cdl_jax.data import replay
from cdl_jax.data.batch_plan import BatchPlan
from cdl_jax.data.stream import Dataset, Split, split_into_tasks
from cdl_jax.methods.base import Phase, Replay

BATCH, CLASSES = 4, 6
ORDERS = (tuple(range(CLASSES)), (4, 5, 0, 1, 2, 3))


def plan(**options):
    """Three tasks of two classes with 10 training images each, whose labels alternate."""
    labels = (np.arange(10 * CLASSES) % CLASSES).astype(np.int32)
    images = np.zeros((len(labels), 1, 1, 3), np.uint8)
    stream = split_into_tasks(Dataset("zeros", tuple("abcdef"), *[Split(labels, images)] * 2), num_tasks=3)
    return BatchPlan.build(stream, BATCH, ORDERS, **options)


@pytest.mark.parametrize("balance", ["experience", "class"])
def test_replayed_rows_are_of_the_classes_that_the_learner_has_met(balance):
    own, memory = plan(), Replay(capacity=9, batch=6, balance=balance)
    order = own.order(2, Phase("replay", 2, (), replay=memory), range(2), seed=5)
    assert order.shape == (2 * 5, BATCH + 6, 2)
    labels = own.stream.train.labels[order]
    assert set(labels[:, :BATCH, 0].flat) == {4, 5} and set(labels[:, :BATCH, 1].flat) == {2, 3}
    assert set(labels[:, BATCH:, 0].flat) == {0, 1, 2, 3} and set(labels[:, BATCH:, 1].flat) == {0, 1, 4, 5}


def test_a_memory_is_divided_over_tasks_or_classes():
    own = plan()
    for balance, expected in (("experience", {0: 5, 1: 4}), ("class", {0: 3, 1: 2, 2: 2, 3: 2})):
        rows = own.replay_rows(0, 2, Replay(capacity=9, batch=6, balance=balance), seed=5)
        labels = own.stream.train.labels[rows]
        groups = labels // 2 if balance == "experience" else labels
        assert dict(zip(*np.unique(groups, return_counts=True), strict=True)) == expected
        assert len(set(rows)) == 9
    second = own.replay_rows(1, 2, Replay(9, 6, "class"), seed=5)
    expected = replay.memory_rows_by_class(own.train[1][:2], own.stream.train.labels, 9, 5, 1)
    np.testing.assert_array_equal(second, np.concatenate(expected))


def test_public_rows_come_last_and_are_the_same_for_all_learners_and_tasks():
    own, phase = plan(num_public=7), Phase("together", 1, (), num_public=3)
    public = own.public_rows(seed=5)
    assert len(set(public)) == 7 and set(public) <= set(range(60))
    for task in range(3):
        columns = own.order(task, phase, range(1), seed=5)[:, BATCH:]
        assert columns.shape == (5, 3, 2)
        np.testing.assert_array_equal(columns[..., 0], columns[..., 1])
        drawn = columns[..., 0].ravel()
        assert set(drawn) == set(public) and np.bincount(drawn).max() == 3  # 15 = two passes over 7 rows, and one more
    assert own.public_rows(seed=6).tolist() != public.tolist()
    assert sorted(plan(num_public=100).public_rows(seed=5)) == list(range(60))
