"""The networks and the position of evaluations before a task and within it."""

from types import SimpleNamespace

import numpy as np

from cdl_jax.run.loop import TaskLoop
from cdl_jax.training.state import position

TASKS = [SimpleNamespace(index=i, first=2 * i, end=2 * i + 2) for i in range(3)]


def test_before_a_task_the_position_is_that_of_the_task_that_was_trained_last():
    places = []

    def evaluate(mutable, tasks, at, before_batch):
        places.append((tasks[0].index, *(int(at[name]) for name in ("task", "first", "end"))))
        return [SimpleNamespace(accuracy={"student": [50.0]})]

    record = SimpleNamespace(initial_accuracy={}, pretask_accuracy={})
    experiment = SimpleNamespace(stream=SimpleNamespace(tasks=TASKS), method=SimpleNamespace(external=()))
    run = SimpleNamespace(
        experiment=experiment, records=[record], mutable=None, _evaluate=evaluate, _stop_if_requested=None
    )
    for task in TASKS:
        TaskLoop._evaluate_before(run, task)
    initial, pretask = [(0, 0, 0, 2), (1, 0, 2, 4), (2, 0, 4, 6)], [(0, 0, 0, 2), (1, 0, 2, 4), (2, 1, 4, 6)]
    assert places == [*initial, *pretask]
    assert record.initial_accuracy == record.pretask_accuracy == {"student": [50.0] * 3}


def test_within_a_task_the_networks_are_those_of_its_end():
    found = []

    def evaluate(mutable, tasks, at):
        found.append((mutable, [task.index for task in tasks], int(at["task"])))
        return [SimpleNamespace(accuracy={"student": [40.0, 60.0]}, extra_metrics={})]

    record = SimpleNamespace(best={}, stopping_history=[])
    experiment = SimpleNamespace(
        stream=SimpleNamespace(tasks=TASKS), method=SimpleNamespace(headline=("student",)), metric="accuracy",
        problem=SimpleNamespace(lower_is_better=False),
    )  # fmt: skip
    steps = SimpleNamespace(end_task=lambda mutable, frozen, at: (mutable, frozen, int(at["task"])))
    run = SimpleNamespace(
        experiment=experiment, records=[record], steps=steps, frozen="frozen", _evaluate=evaluate,
        _write_sheets=lambda evaluations: None, _named=lambda means: means, _log=lambda *arguments, **options: None,
    )  # fmt: skip
    TaskLoop._evaluate_within(run, TASKS[1], SimpleNamespace(name="student"), 3, "trained")
    assert found == [(("trained", "frozen", 1), [0, 1], 1)]
    assert record.best == {"1": {"phase": "student", "epochs": 4, "value": 50.0, "accuracy": {"student": [40.0, 60.0]},
                                 "extra_metrics": {}}}  # fmt: skip
    assert record.stopping_history == [50.0] and position(TASKS[1])["end"] == np.int32(4)
