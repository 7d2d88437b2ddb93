"""Accuracy with task identity, class accuracy, confusion of fixed logits, by hand."""

import numpy as np
import pytest

from cdl_jax.evaluation import confusion
from tests.support import fixed_logits
from tests.support.methods import FixedMethod

LABELS = np.array([0, 0, 1, 2, 2, 3, 3])
# Class 0: one right, one as 2. 1: as 3. 2: one right, one as 1. 3: both as 2.
PREDICTED = np.array([0, 2, 3, 2, 1, 2, 2])
# The best class of the other task, which decides with task identity.
SECOND = np.array([3, 0, 1, 0, 2, 0, 3])
LOGITS = 2 * np.eye(4)[PREDICTED] + np.eye(4)[SECOND]


class Learners(FixedMethod):
    streams = ((2, 3, 0, 1),)


def evaluate(num_tasks, batch_size, method=FixedMethod, **attributes):
    return fixed_logits.evaluate({"net": LOGITS}, LABELS, (2, 2), num_tasks, batch_size, method, **attributes)


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
    """The learner's order is 2, 3, 0, 1; all test images are evaluated.

    Classes 0 and 1 of the learner are therefore 2 and 3.
    """
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
