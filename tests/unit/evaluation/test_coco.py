"""COCO's average precision: by hand, pycocotools' summary, subsets of categories."""

import contextlib
import io
from dataclasses import replace

import jax
import numpy as np
import pytest

from cdl_jax.data.detection import canvases, coco_files
from cdl_jax.data.detection.coco_files import DetectionSet, Objects
from cdl_jax.data.detection.loader import DetectionLoader
from cdl_jax.data.tools import make_glyph_scenes
from cdl_jax.evaluation import coco
from cdl_jax.evaluation.detections import Detections, top_detections
from cdl_jax.runtime import sharding

CATEGORIES = {2: "cat", 5: "dog", 9: "owl"}


def objects(*records):
    """Objects of (row, label, box, crowd)."""
    rows, labels, boxes, crowds = zip(*records, strict=True)
    boxes = np.array(boxes, float)
    return Objects(
        np.arange(len(rows)), np.array(rows), np.array(labels), boxes, boxes[:, 2] * boxes[:, 3], np.array(crowds, bool)
    )


def set_of(found, count=2):
    sizes = np.full((count, 2), 400, np.int32)
    return DetectionSet("toy", CATEGORIES, np.arange(10, 10 + count), ("",) * count, sizes, found)


def detections(*records):
    """Detections of (row, label, (x0, y0, x1, y1), score)."""
    rows, labels, boxes, scores = zip(*records, strict=True) if records else ((), (), (), ())
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return Detections(np.array(rows, int), np.array(labels, int), boxes, np.array(scores, np.float32))


def random_case(seed=0):
    rng = np.random.default_rng(seed)
    records, found = [], []
    for row in range(8):
        for _ in range(rng.integers(0, 7)):
            label = int(rng.choice(list(CATEGORIES)))
            x, y, w, h = rng.uniform(0, 200), rng.uniform(0, 200), rng.uniform(5, 150), rng.uniform(5, 150)
            records.append((row, label, (x, y, w, h), rng.random() < 0.1))
            for _ in range(rng.integers(0, 3)):
                moved = np.array([x, y, x + w, y + h]) + rng.normal(0, 0.08 * min(w, h), 4)
                found.append((row, label, moved, rng.random()))
        found.append((row, int(rng.choice([2, 5, 9, 77])), (0, 0, 50, 50), rng.random()))
    return set_of(objects(*records), 8), detections(*found)


def test_precision_and_recall_by_hand():
    """Detections of two cats: a cat, a false alarm, the other cat with an IoU of 0.6."""
    data = set_of(objects((0, 2, (0, 0, 100, 100), 0), (1, 2, (0, 0, 100, 100), 0)))
    found = detections((0, 2, (0, 0, 100, 100), 0.9), (0, 2, (200, 200, 300, 300), 0.8), (1, 2, (0, 0, 100, 60), 0.7))
    evaluation = coco.evaluate(data, found)
    numbers = evaluation.numbers()
    # IoU 0.5 to 0.6: precision 1 up to recall 0.5 (51 points), 2/3 above (50 points). Higher: 0 above recall 0.5.
    low, high = (51 + 50 * 2 / 3) / 101, 51 / 101
    assert numbers["AP50"] == pytest.approx(low) and numbers["AP75"] == pytest.approx(high)
    thresholds = sum(0.6 >= t - 1e-9 for t in np.arange(0.5, 0.96, 0.05))
    assert numbers["AP"] == pytest.approx((thresholds * low + (10 - thresholds) * high) / 10)
    assert numbers["AP large"] == pytest.approx(numbers["AP"]) and numbers["AP small"] == -1
    assert numbers["AR1"] == pytest.approx((thresholds * 1 + (10 - thresholds) * 0.5) / 10)
    curve = evaluation.curves(0.5)
    assert curve.shape == (3, 101) and curve[0].tolist() == pytest.approx([1] * 51 + [2 / 3] * 50)
    assert (curve[1:] == -1).all()


def test_mean_curves_average_to_the_ap_of_a_threshold():
    """Without cats, whose precision counts neither way."""
    data, found = random_case(3)
    data = replace(data, objects=data.objects.take(data.objects.labels != 2))
    evaluation = coco.evaluate(data, found)
    numbers = evaluation.numbers()
    assert (evaluation.curves(0.75)[0] == -1).all()
    for iou, name in ((0.5, "AP50"), (0.75, "AP75")):
        curve = evaluation.mean_curve(iou)
        assert curve.shape == (101,) and curve.mean() == pytest.approx(numbers[name]) and 0 < numbers[name] < 1
        np.testing.assert_allclose(curve, evaluation.curves(iou)[1:].mean(axis=0))
    nothing = replace(data, objects=data.objects.take(slice(0)))
    assert (coco.evaluate(nothing, found).mean_curve() == -1).all()


def test_all_numbers_equal_the_summary_of_pycocotools():
    from pycocotools.cocoeval import COCOeval

    data, found = random_case()
    evaluation = coco.evaluate(data, found)
    with contextlib.redirect_stdout(io.StringIO()):
        annotated, results = (
            coco._index(data, records) for records in (coco._objects(data), coco._results(data, found))
        )
        reference = COCOeval(annotated, results, "bbox")
        reference.evaluate()
        reference.accumulate()
        reference.summarize()
    np.testing.assert_allclose(list(evaluation.numbers().values()), reference.stats, rtol=1e-12)
    assert len(set(evaluation.numbers().values())) > 8


@pytest.mark.parametrize("subset", [(2,), (9, 5), (2, 5, 9)])
def test_a_subset_equals_a_set_of_these_categories_alone(subset):
    data, found = random_case(1)
    selected = np.isin(data.objects.labels, subset)
    categories = {number: CATEGORIES[number] for number in subset}
    alone = replace(data, categories=categories, objects=data.objects.take(selected))
    expected = coco.evaluate(alone, found).numbers()
    assert coco.evaluate(data, found).numbers(subset) == pytest.approx(expected)
    assert expected["AP"] > 0


def test_numbers_by_category_average_to_the_total():
    data, found = random_case(2)
    evaluation = coco.evaluate(data, found)
    by_category = evaluation.by_category()
    assert set(by_category) == set(CATEGORIES)
    assert np.mean([numbers["AP"] for numbers in by_category.values()]) == pytest.approx(evaluation.numbers()["AP"])


def test_the_first_object_counts():
    """Ids of files are not passed on: pycocotools takes a match with id 0 for none."""
    data = set_of(objects((0, 2, (0, 0, 100, 100), 0)))
    assert data.objects.ids.tolist() == [0]
    assert coco.evaluate(data, detections((0, 2, (0, 0, 100, 100), 0.9))).numbers()["AP"] == pytest.approx(1)


def test_crowds_count_neither_way():
    data = set_of(objects((0, 2, (0, 0, 100, 100), 0), (1, 2, (0, 0, 200, 200), 1)))
    hit = (0, 2, (0, 0, 100, 100), 0.5)
    in_crowd = [(1, 2, (10, 10, 60, 60), 0.9), (1, 2, (100, 100, 150, 150), 0.8)]
    assert coco.evaluate(data, detections(hit, *in_crowd)).numbers()["AP"] == pytest.approx(1)
    outside = (1, 2, (300, 300, 350, 350), 0.9)
    assert coco.evaluate(data, detections(hit, outside)).numbers()["AP"] == pytest.approx(0.5)


def test_perfect_outputs_of_a_detector_give_1(tmp_path):
    """From files to evaluation batches of other sizes, post-processing, file pixels."""
    assert make_glyph_scenes.main(["--out", str(tmp_path / "scenes"), "--num-train", "1", "--num-val", "5"]) == 0
    data = coco_files.read_part(tmp_path / "scenes", "val2017")
    options = {"eval_size": 160, "scales": (160,), "crop": 0.0, "canvases": ()}
    loader = DetectionLoader.build(data, sharding.make_mesh(1), options, group_size=2, training=False)

    def outputs(batch):
        logits = 10.0 * jax.nn.one_hot(batch["labels"], data.num_outputs) * batch["valid"][..., None] - 5.0
        return {**batch, **top_detections(logits, batch["boxes"], batch["original_sizes"])}

    batches = loader.test_batches(*canvases.evaluation_rows(len(data), groups=2, group_size=2))
    numbers = coco.evaluate(data, Detections.collect(map(outputs, batches))).numbers()
    assert numbers["AP"] == pytest.approx(1) and numbers["AR100"] == pytest.approx(1)


def test_no_detections_and_no_objects(capsys):
    data = set_of(objects((0, 2, (0, 0, 100, 100), 0)))
    numbers = coco.evaluate(data, detections()).numbers()
    assert numbers["AP"] == 0 and numbers["AR100"] == 0 and numbers["AP small"] == -1
    nothing = set_of(objects((0, 2, (0, 0, 9, 9), 0)).take(slice(0)))
    assert set(coco.evaluate(nothing, detections((0, 2, (0, 0, 9, 9), 1.0))).numbers().values()) == {-1}
    assert set(coco.evaluate(data, detections()).numbers([5]).values()) == {-1}
    assert capsys.readouterr().out == ""
