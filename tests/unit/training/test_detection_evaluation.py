"""The evaluation of detectors: classes that are not seen yet are hidden, and each task has its average precision."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.data import stream
from cdl_jax.data.batch_plan import BatchPlan
from cdl_jax.data.detection import canvases
from cdl_jax.evaluation.detections import Detections
from cdl_jax.methods.base import Phase, StreamInfo
from cdl_jax.training.detection import DetectionEvaluator, evaluation_step
from cdl_jax.training.state import position
from tests.support import coco_sets


@pytest.fixture(scope="module")
def tasks_of_three(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    records = coco_sets.content()
    records["annotations"].append({"id": 40, "image_id": 7, "category_id": 7, "bbox": [1, 1, 9, 9]})
    for part in ("train2017", "val2017"):
        coco_sets.write(root, part, records)
    return stream.load({"name": "coco", "path": str(root), "num_tasks": 3})


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
    rows, counts, extra, calibration = evaluate(s, found, s.tasks[:2])  # of the categories 3 and 7
    assert (counts, calibration) == ({}, {})
    assert rows["student"] == pytest.approx([0, 100])
    assert extra["student/AP"] == pytest.approx(50) and extra["student/AP50"] == pytest.approx(50)
    assert extra["student/AP old"] == pytest.approx(0) and extra["student/AP new"] == pytest.approx(100)
    assert "student/AP large" not in extra  # no object of that size
    rows, _, extra, _ = evaluate(s, found, s.tasks)
    assert rows["student"] == pytest.approx([0, 100, 100]) and extra["student/AP old"] == pytest.approx(50)
    assert "student/AP old" not in evaluate(s, found, s.tasks[:1])[2]


def test_batches_of_groups_are_those_of_the_authors_processes(tasks_of_three):
    plan = BatchPlan.build(tasks_of_three, batch_size=2, group_size=1)
    phase = Phase("student", 2, ())
    order = plan.order(1, phase, range(2), seed=5)
    assert plan.steps_per_epoch(1, phase) == 1 and order.shape == (2, 2)
    rows = tasks_of_three.tasks[1].train
    for epoch in range(2):
        expected = canvases.epoch_rows(len(rows), 2, 1, seed=5, purpose=(1, 0, epoch))
        np.testing.assert_array_equal(order[epoch : epoch + 1], rows[expected])
