"""Each metric of a 3 x 3 matrix, computed by hand."""

import numpy as np
import pytest

from cdl_jax.errors import UserError
from cdl_jax.evaluation import metrics

ROWS = [[90.0], [60.0, 80.0], [66.0, 50.0, 70.0]]
COUNTS = [10, 30, 60]
BY_HAND = {
    "last": 62.0,  # (66 + 50 + 70) / 3
    "average_incremental": 74.0,  # (90 + 70 + 62) / 3
    "learning_accuracy": 80.0,  # (90 + 80 + 70) / 3
    "worst_task": 50.0,
    "last_image_weighted": 63.6,  # (10 * 66 + 30 * 50 + 60 * 70) / 100
    "average_incremental_image_weighted": (90 + (600 + 2400) / 40 + 63.6) / 3,
    "forgetting_cdl": 18.0,  # (24 + 30 + 0) / 3
    "forgetting_coda": 21.0,  # (30 + (-6 + 30) / 2) / 2
    "forgetting_max": 27.0,  # (90 - 66 + 80 - 50) / 2
    "backward_transfer": -27.0,
    "forward_transfer": 3.0,  # ((12 - 10) + (7 - 3)) / 2
}

OF_CALIBRATION = {"ece_last": 4.0, "ece_average_incremental": 6.0, "ece_last_by_task": 5.0}
OF_STREAM = {"stream_accuracy": 63.6, "stream_accuracy_by_task": 62.0}
OF_TASKS = {"task_incremental_last": 85.0, "task_incremental_learning": 92.5}
OF_PAIR = {"agreement_last": 70.0, "agreement_learning": 75.0, "kl_last": 0.75, "kl_learning": 0.375}


def test_calibration_and_pairs_have_metrics_too():
    assert metrics.calibration_metrics([[8.0], [3.0, 7.0]], [8.0, 4.0]) == OF_CALIBRATION
    assert metrics.pair_metrics([[90.0], [80.0, 60.0]], [[0.25], [1.0, 0.5]]) == OF_PAIR
    assert metrics.calibration_metrics(None, None) == dict.fromkeys(OF_CALIBRATION)
    assert metrics.task_incremental_metrics([[95.0], [80.0, 90.0]]) == OF_TASKS
    assert metrics.task_incremental_metrics(None) == dict.fromkeys(OF_TASKS)


def test_every_metric_has_its_value_and_its_formula():
    found = metrics.named_metrics(ROWS, COUNTS, pretask_accuracy=[99.0, 12.0, 7.0], initial_accuracy=[5.0, 10.0, 3.0])
    assert found == pytest.approx(BY_HAND)
    assert metrics.FORMULAS.keys() == {*BY_HAND, *OF_CALIBRATION, *OF_PAIR, *OF_STREAM, *OF_TASKS}
    assert all(text and "\n" not in text for text in (metrics.FORMULAS | metrics.SERIES).values())


def test_forgetting_max_uses_the_best_row():
    rows = [[50.0], [90.0, 80.0], [60.0, 85.0, 70.0]]
    found = metrics.named_metrics(rows, COUNTS)
    assert found["forgetting_max"] == pytest.approx((30 + 0) / 2)  # task 0 was best after task 1, task 1 at the end
    assert found["forgetting_cdl"] == pytest.approx((-10 - 5 + 0) / 3)
    assert found["backward_transfer"] == pytest.approx((10 + 5) / 2)
    assert found["forgetting_coda"] == pytest.approx((-40 + (30 - 5) / 2) / 2)


def test_an_unfinished_run_has_the_metrics_of_its_tasks_so_far():
    found = metrics.named_metrics(ROWS[:2], COUNTS, pretask_accuracy=[99.0, 12.0], initial_accuracy=[5.0, 10.0, 3.0])
    assert found["last"] == 70.0
    assert found["average_incremental"] == 80.0
    assert found["last_image_weighted"] == 75.0
    assert found["average_incremental_image_weighted"] == 82.5
    assert found["forgetting_cdl"] == 15.0
    assert found["forgetting_coda"] == found["forgetting_max"] == -found["backward_transfer"] == 30.0
    assert found["forward_transfer"] == 2.0
    longer = metrics.named_metrics(ROWS, COUNTS, pretask_accuracy=[9.0, 12.0, 7.0], initial_accuracy=[5.0, 10.0])
    assert longer["forward_transfer"] is None


def test_one_task_has_no_forgetting_and_no_transfer():
    found = metrics.named_metrics([[42.5]], [8], pretask_accuracy=[40.0], initial_accuracy=[30.0])
    of_two = {"forgetting_cdl", "forgetting_coda", "forgetting_max", "backward_transfer", "forward_transfer"}
    assert {name for name, value in found.items() if value is None} == of_two
    assert {value for name, value in found.items() if name not in of_two} == {42.5}


def test_tasks_of_equal_size_give_equal_weighted_means():
    found = metrics.named_metrics(ROWS, [7, 7, 7])
    assert found["last_image_weighted"] == pytest.approx(found["last"])
    assert found["average_incremental_image_weighted"] == pytest.approx(found["average_incremental"])
    assert found["forward_transfer"] is None


def test_as_matrix_fills_above_the_diagonal_and_refuses_other_shapes():
    matrix = metrics.as_matrix(ROWS)
    assert np.isnan(matrix[np.triu_indices(3, 1)]).all()
    assert matrix[np.tril_indices(3)].tolist() == [90, 60, 80, 66, 50, 70]
    with pytest.raises(UserError, match="row 1 has 3 numbers instead of 2"):
        metrics.as_matrix([[1.0], [1.0, 2.0, 3.0]])


def test_forgetting_has_a_value_of_each_task_and_after_each():
    matrix = metrics.as_matrix([[50.0], [90.0, 80.0], [60.0, 85.0, 70.0], [40.0, 90.0, 65.0, 75.0]])
    assert metrics.forgetting_by_task(matrix).tolist() == [10, -10, 5]
    assert metrics.forgetting_by_task(matrix, best=True).tolist() == [50, -5, 5]
    assert metrics.forgetting_by_task(matrix).mean() == pytest.approx(-metrics.backward_transfer(matrix))
    after = [0, -40, (-10 - 5) / 2, (10 - 10 + 5) / 3]
    np.testing.assert_allclose(metrics.forgetting_after_each(matrix), after)
    assert metrics.forgetting_by_task(matrix[:1, :1]).tolist() == []


def test_stream_accuracy_weights_images_or_tasks_equally():
    assert metrics.stream_accuracy([66.0, 50.0, 70.0], COUNTS) == pytest.approx(63.6)
    assert metrics.stream_accuracy([66.0, 50.0, 70.0]) == pytest.approx(62)


def test_stream_accuracy_includes_future_tasks():
    # After the first task a tenth of the second is right by luck; the third has 60 of the 100 images.
    stream = [[90.0, 10.0, 5.0], [60.0, 80.0, 0.0], [66.0, 50.0, 70.0]]
    assert metrics.stream_metrics(stream, COUNTS) == pytest.approx(OF_STREAM)
    assert metrics.stream_accuracy([20.0, 50.0], COUNTS) == 42.5  # before a third task: (200 + 1500) / 40
    assert metrics.stream_metrics(stream[:1], COUNTS) == {"stream_accuracy": 15.0, "stream_accuracy_by_task": 35.0}
    assert metrics.stream_metrics(None, COUNTS) == dict.fromkeys(OF_STREAM)
    found = metrics.series(ROWS, stream, COUNTS)
    assert found.keys() == metrics.SERIES.keys()
    assert found["forgetting_by_task"] == [24.0, 30.0] and found["forgetting_after_each"] == [0.0, 30.0, 27.0]
    assert found["stream_accuracy"] == pytest.approx([15.0, 30.0, 63.6])
    assert found["stream_accuracy_by_task"] == pytest.approx([35.0, 140 / 3, 62.0])
    assert metrics.series(ROWS, None, COUNTS).keys() == {"forgetting_by_task", "forgetting_after_each"}


def test_means_over_networks_need_all_of_them():
    measured = [{"last": 60.0, "ece_last": 1.0}, {"last": 63.0, "ece_last": None}]
    assert metrics.means(measured) == {"last": 61.5, "ece_last": None}


def test_of_distances_the_smallest_is_the_best():
    rows = [[50.0], [60.0, 30.0]]
    found = metrics.named_metrics(rows, [1, 3], [80.0, 70.0], [90.0, 95.0], lower_is_better=True)
    assert (found["last"], found["worst_task"], found["last_image_weighted"]) == (45.0, 60.0, 37.5)
    # The distance of task 0 grew by 10.
    assert (found["forgetting_max"], found["forgetting_cdl"], found["backward_transfer"]) == (10.0, 5.0, -10.0)
    assert found["forward_transfer"] == 25.0  # 95 - 70: less than at the start
    assert metrics.series(rows, None, None, lower_is_better=True)["forgetting_by_task"] == [10.0]
