"""`--mode=analyze`: refused runs, and the forgetting between teacher and student."""

from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest

from cdl_jax.errors import UserError
from cdl_jax.run import analysis


@pytest.mark.parametrize(
    ("seeds", "finished", "message"),
    [
        ((0, 1), [0, 1], "--mode=analyze looks at a run of one seed"),
        ((), [], "--workdir run has no finished task: let the same command train"),
        ((), [2, 3], "run/checkpoints/tasks lacks task 0: restore it, or train anew elsewhere"),
        ((), [0, 2], "run/checkpoints/tasks lacks task 1"),
    ],
)
def test_runs_without_all_checkpoints_are_refused(monkeypatch, seeds, finished, message):
    stored = SimpleNamespace(finished_tasks=lambda: finished)
    monkeypatch.setattr(analysis, "Checkpoints", lambda folder, read_only: nullcontext(stored))
    with pytest.raises(UserError) as error:
        analysis.analyze(SimpleNamespace(config=SimpleNamespace(seeds=seeds)), "run")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_forgetting_compares_the_teacher_after_a_task_with_later_students_over_its_classes():
    """Row i, column t: mean KL(teacher after t || student after i), images of task t."""
    rng = np.random.default_rng(0)
    tasks = [SimpleNamespace(index=0, first=0, end=2), SimpleNamespace(index=1, first=2, end=4)]
    logits = {
        (after, task): {name: rng.normal(size=(3, 4)).astype(np.float32) for name in ("teacher", "student")}
        for after in range(2)
        for task in range(after + 1)
    }
    method = SimpleNamespace(pairs=(("teacher", "student"),))
    experiment = SimpleNamespace(method=method, info=SimpleNamespace(num_classes=4))
    evaluator = SimpleNamespace(
        steps=SimpleNamespace(experiment=experiment),
        logits=lambda mutable, frozen, task, at: logits[mutable, task.index],
    )
    found = analysis._forgetting(evaluator, tasks, lambda index: index, None)

    def softmax(values):
        powers = np.exp(values.astype(np.float64))
        return powers / powers.sum(axis=1, keepdims=True)

    def divergence(after, task):
        columns = slice(0, tasks[task].end)
        teacher = softmax(logits[task, task]["teacher"][:, columns])
        student = softmax(logits[after, task]["student"][:, columns])
        return (teacher * np.log(teacher / student)).sum(axis=1).mean()

    (rows,) = found.values()
    assert list(found) == ["teacher/student"] and [len(row) for row in rows] == [1, 2]
    for after, task in logits:
        assert rows[after][task] == pytest.approx(divergence(after, task), rel=1e-4)
