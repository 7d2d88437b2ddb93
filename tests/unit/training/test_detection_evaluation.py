"""Evaluation of detectors: hidden unseen classes, average precision of each task."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.data import stream
from cdl_jax.data.batch_plan import BatchPlan
from cdl_jax.data.detection import canvases
from cdl_jax.evaluation import coco
from cdl_jax.evaluation.detections import Detections
from cdl_jax.methods.base import Phase, StreamInfo
from cdl_jax.training.detection import DetectionEvaluator, detection_details, evaluation_step, example_rows
from cdl_jax.training.state import position
from tests.support import coco_sets


@pytest.fixture(scope="module")
def tasks_of_three(tmp_path_factory):
    return coco_sets.stream_of_three(tmp_path_factory.mktemp("coco"))


class Loader:
    """Passes batches on."""

    @staticmethod
    def read(data, host_batch):
        return host_batch


def test_classes_that_are_not_seen_yet_are_not_detected():
    logits = jnp.array([[[0.0, 1.0, 3.0, 2.0, 5.0]]])  # one query; the categories are 4, 2 and 3, in this order

    def predict(variables, batch, context):
        return {"student": {"logits": logits, "boxes": jnp.array([[[0.5, 0.5, 0.5, 1.0]]])}}, {}

    info = StreamInfo(3, (1, 1, 1), class_ids=(4, 2, 3))
    step = evaluation_step(SimpleNamespace(predict=predict), Loader, None, info)
    batch = {"original_sizes": np.array([[10, 20]]), "weight": np.ones(1)}
    found = {}
    for task in range(3):
        at = position(stream.Task(task, (0,), task, None, None))
        out = jax.jit(step)({}, {}, {}, batch, at)["student"]
        found[task] = out["labels"][0][out["scores"][0] > 0].tolist()
    assert found == {0: [4, 1, 0], 1: [4, 2, 1, 0], 2: [4, 2, 3, 1, 0]}
    np.testing.assert_allclose(out["boxes"][0, 0], [5, 0, 15, 10])


def evaluate(s, found, tasks):
    steps = SimpleNamespace(experiment=SimpleNamespace(stream=s))
    evaluator = DetectionEvaluator(steps)
    evaluator.detections = lambda *_: {"student": found}
    return evaluator.evaluate({}, {}, tasks, position(tasks[-1]))[0]


def test_perfect_detections_of_one_class_are_its_tasks_average_precision(tasks_of_three):
    s = tasks_of_three
    objects = s.test.objects.take(~s.test.objects.crowds & (s.test.objects.labels != 3))
    corners = np.concatenate([objects.boxes[:, :2], objects.boxes[:, :2] + objects.boxes[:, 2:]], axis=1)
    found = Detections(objects.rows, objects.labels, np.float32(corners), np.ones(len(objects), np.float32))
    rows, counts, extra, calibration, *_ = evaluate(s, found, s.tasks[:2])  # of the categories 3 and 7
    assert (counts, calibration) == ({}, {})
    assert rows["student"] == pytest.approx([0, 100])
    assert extra["student/AP"] == pytest.approx(50) and extra["student/AP50"] == pytest.approx(50)
    assert extra["student/AP old"] == pytest.approx(0) and extra["student/AP new"] == pytest.approx(100)
    assert "student/AP large" not in extra  # no object of that size
    rows, _, extra, *_ = evaluate(s, found, s.tasks)
    assert rows["student"] == pytest.approx([0, 100, 100]) and extra["student/AP old"] == pytest.approx(50)
    assert "student/AP old" not in evaluate(s, found, s.tasks[:1])[2]


def test_details_of_a_detector_by_hand(tasks_of_three):
    """Class 7 has two objects: one found at score 0.9, after a false alarm at 0.95."""
    data, classes = tasks_of_three.test, (7, 3, 90)
    records = ((0, 7, (1, 2, 4, 6), 0.9), (2, 7, (20, 20, 30, 31), 0.95), (2, 3, (0, 0, 5, 5), 0.2))
    rows, labels, boxes, scores = (np.array(column) for column in zip(*records, strict=True))
    found = Detections(rows, labels, boxes.astype(np.float32), scores.astype(np.float32))
    details = detection_details(coco.evaluate(data, found), found, classes, data)
    curve = [0.5] * 51 + [0.0] * 50  # of class 7: a precision of 1/2 up to a recall of 1/2
    assert details["curves"]["classes"] == [curve, [0.0] * 101, [0.0] * 101]
    assert details["curves"]["0.5"] == details["curves"]["0.75"] == pytest.approx([x / 3 for x in curve], abs=1e-4)
    assert details["class_ap"] == pytest.approx([100 * 51 * 0.5 / 101, 0, 0])
    assert details["examples"] == [
        {"row": 0, "label": 7, "score": 0.9, "box": [1, 2, 3, 4]},
        {"row": 2, "label": 7, "score": 0.95, "box": [20, 20, 10, 11]},
    ]
    assert json.loads(json.dumps(details)) == details


def test_a_class_without_objects_has_no_curve(tasks_of_three):
    data = tasks_of_three.test
    without = dataclasses.replace(data, objects=data.objects.take(data.objects.labels != 3))
    found = Detections(np.zeros(0, int), np.zeros(0, int), np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    details = detection_details(coco.evaluate(without, found), found, (3, 7), without)
    assert details["class_ap"] == [None, 0.0] and details["examples"] == []
    assert details["curves"]["classes"] == [None, [0.0] * 101] and details["curves"]["0.5"] == [0.0] * 101


def test_examples_are_evenly_spaced_images_with_targets():
    rows = np.array([0, 0, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15, 17])
    data = SimpleNamespace(objects=SimpleNamespace(rows=rows), trainable=rows != 17)
    assert example_rows(data).tolist() == [0, 3, 6, 9, 12, 15]  # of 0, 2, 3, 5, 6, 8, 9, 11, 12, 14, 15
    few = SimpleNamespace(objects=SimpleNamespace(rows=np.array([4, 4, 7])), trainable=np.ones(3, bool))
    assert example_rows(few).tolist() == [4, 7]


def test_batches_of_groups_are_those_of_the_authors_processes(tasks_of_three):
    plan = BatchPlan.build(tasks_of_three, batch_size=2, group_size=1)
    phase = Phase("student", 2, ())
    order = plan.order(1, phase, range(2), seed=5)
    assert plan.steps_per_epoch(1, phase) == 1 and order.shape == (2, 2)
    rows = tasks_of_three.tasks[1].train
    for epoch in range(2):
        expected = canvases.epoch_rows(len(rows), 2, 1, seed=5, purpose=(1, 0, epoch))
        np.testing.assert_array_equal(order[epoch : epoch + 1], rows[expected])
