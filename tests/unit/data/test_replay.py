"""Rows of a replay memory, and their order in batches."""

import numpy as np
import pytest

from cdl_jax.data import replay
from cdl_jax.errors import UserError

TASKS = [np.arange(100 * task, 100 * task + 60, dtype=np.int32) for task in range(4)]
LABELS = np.arange(400) % 3  # every task has all three


def test_capacity_is_split_evenly_and_the_first_groups_get_one_more():
    assert replay.group_lengths(2000, 3) == [667, 667, 666]
    assert replay.group_lengths(2000, 10) == [200] * 10
    assert replay.group_lengths(2, 4) == [1, 1, 0, 0]


def test_a_memory_that_shrinks_keeps_the_rows_of_the_largest_keys():
    memories = [replay.memory_rows(TASKS[:n], 50, seed=3) for n in range(1, 5)]
    assert [[len(rows) for rows in memory] for memory in memories] == [[50], [25, 25], [17, 17, 16], [13, 13, 12, 12]]
    for before, after in zip(memories, memories[1:], strict=False):
        for old, new in zip(before, after, strict=False):
            assert np.array_equal(new, old[: len(new)])
    for task, rows in zip(TASKS, memories[-1], strict=True):
        assert rows.dtype == np.int32 and len(set(rows)) == len(rows) and set(rows) <= set(task)


def test_keys_depend_on_seed_learner_and_task():
    def memories(seed, learner=0):
        return [rows.tolist() for rows in replay.memory_rows(TASKS[:2], 40, seed, learner)]

    assert memories(1) == memories(1)
    assert memories(1) != memories(2) and memories(1) != memories(1, learner=1)
    first, second = memories(1)
    assert first != [row - 100 for row in second]


def test_every_row_has_the_same_chance():
    counts = np.zeros(60)
    for seed in range(600):
        counts[replay.memory_rows(TASKS[:1], 15, seed)[0]] += 1
    assert counts.sum() == 600 * 15
    assert abs(counts - 150).max() < 4.5 * (600 * 0.25 * 0.75) ** 0.5


def test_a_small_task_leaves_its_room_unused():
    memories = replay.memory_rows([TASKS[0], np.array([7, 8])], 40, seed=0)
    assert [len(rows) for rows in memories] == [20, 2]
    assert replay.memory_rows([], 40, seed=0) == replay.memory_rows_by_class([], LABELS, 40, seed=0) == []


def test_a_memory_may_be_balanced_over_classes():
    memories = [replay.memory_rows_by_class(TASKS[:n], LABELS, 50, seed=3) for n in (1, 2, 4)]
    for memory in memories:
        assert [len(rows) for rows in memory] == [17, 17, 16]
        assert [set(LABELS[rows]) for rows in memory] == [{0}, {1}, {2}]
    from_second = [np.isin(rows, TASKS[1]).mean() for rows in memories[1]]
    assert all(0 < share < 1 for share in from_second)
    # A row that is lost never comes back.
    for early, late in zip(memories[1], memories[2], strict=True):
        assert set(late) & {*TASKS[0], *TASKS[1]} <= set(early)


def test_every_pass_has_each_row_once_and_batches_are_full():
    rows = np.arange(50, 57)
    order = replay.memory_order(rows, steps=7, batch=4, seed=5, purpose=(0, 1, 2))
    assert order.shape == (7, 4) and order.dtype == np.int32
    passes = order.reshape(4, 7)
    assert (np.sort(passes, axis=1) == rows).all()
    assert len({tuple(p) for p in passes}) == 4


def test_an_order_depends_on_its_purpose_and_longer_ones_begin_equally():
    rows = np.arange(20)
    order = replay.memory_order(rows, 9, 8, 5, (0, 1, 2))
    assert np.array_equal(order, replay.memory_order(rows, 12, 8, 5, (0, 1, 2))[:9])
    for other in ((6, (0, 1, 2)), (5, (1, 1, 2)), (5, (0, 1, 3)), (5, (0, 1, 2, 0))):
        assert not np.array_equal(order, replay.memory_order(rows, 9, 8, *other))


def test_an_empty_memory_has_no_order():
    with pytest.raises(UserError, match="replay memory is empty"):
        replay.memory_order(np.array([], np.int32), 1, 1, 0, ())
