"""Accuracy with task identity, accuracy of classes and confusion of fixed logits, against counts by hand."""

from contextlib import nullcontext
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.data.stream import Task
from cdl_jax.data.transforms import augment
from cdl_jax.evaluation import confusion
from cdl_jax.methods.base import StreamInfo
from cdl_jax.options import defaults
from cdl_jax.training.evaluator import Evaluator
from cdl_jax.training.state import position
from cdl_jax.training.steps import evaluation_step
from tests.support.methods import FixedMethod

LABELS = np.array([0, 0, 1, 2, 2, 3, 3])
# Class 0: one right, one as 2. 1: as 3. 2: one right, one as 1. 3: both as 2.
PREDICTED = np.array([0, 2, 3, 2, 1, 2, 2])
# The best class of the other task, which decides with task identity.
SECOND = np.array([3, 0, 1, 0, 2, 0, 3])
LOGITS = 2 * np.eye(4)[PREDICTED] + np.eye(4)[SECOND]
TASKS = [Task(t, (2 * t, 2 * t + 1), 2 * t, np.arange(0), np.flatnonzero(LABELS // 2 == t)) for t in range(2)]


class Source:
    """Has images that are row numbers."""

    crops_on_host = True
    data = {}

    @staticmethod
    def read(data, batch):
        images = jnp.broadcast_to(batch["rows"][:, None, None, None], (len(batch["rows"]), 1, 1, 3))
        return images, jnp.asarray(LABELS)[batch["rows"]]

    @staticmethod
    def test_batches(rows, weight):
        return ({"rows": r, "weight": w} for r, w in zip(rows, weight, strict=True))


class Learners(FixedMethod):
    streams = ((2, 3, 0, 1),)


def evaluate(num_tasks, batch_size, method=FixedMethod, **attributes):
    """Returns `Evaluator.evaluate` after `num_tasks` tasks; "net" has the table of logits."""
    unit = defaults(augment.OPTIONS, mean=(0.0,) * 3, std=(1.0,) * 3)

    def predict(variables, images, context):
        return {"net": jnp.asarray(LOGITS)[jnp.round(images[:, 0, 0, 0] * 255).astype(jnp.int32)]}, {}

    method = method(prediction=predict, **attributes)
    experiment = SimpleNamespace(
        config=SimpleNamespace(eval=SimpleNamespace(batch_size=batch_size), seeds=()),
        method=method,
        stream=SimpleNamespace(tasks=TASKS),
        plan=SimpleNamespace(multi_learner=bool(method.streams)),
        axis=SimpleNamespace(
            rows=lambda tasks, part: np.concatenate([task.test for task in tasks]), unstack=lambda tree: [tree]
        ),
    )
    steps = SimpleNamespace(
        experiment=experiment,
        test_loader=Source,
        mesh_context=nullcontext,
        evaluation_step=jax.jit(evaluation_step(method, Source, unit, StreamInfo(4, (2, 2)))),
    )
    return Evaluator(steps).evaluate({}, {}, TASKS[:num_tasks], position(TASKS[num_tasks - 1]))[0]


@pytest.mark.parametrize("batch_size", [1, 3, 7, 16])
def test_counts_after_two_tasks_by_hand(batch_size):
    found = evaluate(2, batch_size)
    assert found.accuracy["net"] == pytest.approx([100 / 3, 25])
    of_net = found.classification["net"]
    # Task 0: its best class is right in rows 0, 1 and 2. Task 1: it is 2 in all rows, which rows 3 and 4 are.
    assert of_net["task_incremental"] == pytest.approx([100, 50])
    assert of_net["class_accuracy"] == [50, 0, 50, 0]
    assert of_net["confusion"] == [{"0": 1, "2": 1}, {"3": 1}, {"1": 1, "2": 1}, {"2": 2}]
    assert confusion.from_rows(of_net["confusion"], 4).sum() == len(LABELS)


def test_counts_after_the_first_task_have_its_classes_alone():
    of_net = evaluate(1, 2).classification["net"]
    assert of_net == {"task_incremental": [100.0], "class_accuracy": [100.0, 100.0], "confusion": [{"0": 2}, {"1": 1}]}


def test_a_learner_with_its_own_class_order_has_its_own_numbers_of_classes():
    """The learner meets 2, 3, 0, 1, so its classes 0 and 1 are 2 and 3; all test images are evaluated."""
    of_net = evaluate(1, 16, Learners, stream_of={"net": 0}).classification["net"]
    assert of_net["task_incremental"] == pytest.approx([50])
    # Over classes 2 and 3: rows 3 and 4 are 2, row 5 is 2; row 6 is 2, though it is a 3.
    assert of_net["confusion"] == [{"0": 2}, {"0": 2}]
    both = evaluate(2, 16, Learners, stream_of={"net": 0}).classification["net"]
    assert both["class_accuracy"] == [50, 0, 50, 0]
    assert both["confusion"] == [{"0": 1, "3": 1}, {"0": 2}, {"0": 1, "2": 1}, {"1": 1}]
    assert both["task_incremental"] == pytest.approx([50, 100])


def test_a_prediction_over_all_classes_may_be_one_that_was_not_seen():
    of_net = evaluate(1, 16, type("All", (FixedMethod,), {"predict_over": "all"})).classification["net"]
    assert of_net["confusion"] == [{"0": 1, "2": 1}, {"3": 1}]
    assert of_net["class_accuracy"] == [50, 0]
