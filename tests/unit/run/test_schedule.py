"""The calls of a phase: evaluations within a task."""

from types import SimpleNamespace

import pytest
from ml_collections import ConfigDict

from cdl_jax.run.schedule import Schedule


@pytest.mark.parametrize(
    ("every", "rounds", "expected"),
    [
        (5, 4, [False, False, False, True]),  # rounds of one epoch: the last one ends the task
        (2, 4, [False, True, False, True]),
        (0, 4, [False] * 4),
        (5, 1, [True]),
    ],
)
def test_evaluations_are_due_at_epochs_of_the_task_and_at_its_end(every, rounds, expected):
    config = ConfigDict({
        "log": {"every_steps": 100}, "eval": {"every_epochs": every}, "checkpoint": {"every_steps": 0},
        "train": {"steps_per_call": 1}, "debug_nans": False,
    })  # fmt: skip
    due = []
    for number in range(rounds):
        record = SimpleNamespace(step=3 * number, round=number, epoch=0, step_in_epoch=0)
        *others, last = Schedule.build(config, record, [16] * 3, 1, rounds)
        assert not any(call.evaluate for call in others)
        due.append(last.evaluate)
    assert due == expected
