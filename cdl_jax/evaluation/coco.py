"""Measures detections by average precision, as COCO does.

`pycocotools` matches detections with objects. Precision and recall are computed once for each category, so the numbers
of any subset of categories, such as those of earlier tasks, are means over them.
"""

import contextlib
import io
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from cdl_jax.data.detection.coco_files import DetectionSet
from cdl_jax.evaluation.detections import Detections

NUMBERS = (
    *("AP", "AP50", "AP75", "AP small", "AP medium", "AP large"),
    *("AR1", "AR10", "AR100", "AR small", "AR medium", "AR large"),
)
MISSING = -1.0  # where there are no objects
_ALL, _SMALL, _MEDIUM, _LARGE = range(4)  # ranges of areas: below 32^2, below 96^2, above
_TOP1, _TOP10, _TOP100 = range(3)  # detections of an image and category


@dataclass(frozen=True, eq=False)
class Evaluation:
    """Precision and recall by category.

    Each value is `MISSING` where there are no objects.

    categories: category id -> name, in the order of the arrays.
    iou_thresholds: float64 `[10]`, 0.5 to 0.95.
    recall_grid: float64 `[101]`, 0 to 1.
    precision: float64 `[10, 101, categories, areas, 3]`, by IoU threshold, recall, category, range of areas (all,
      small, medium, large), and detections of an image and category (1, 10, 100).
    recall: float64 `[10, categories, areas, 3]`, the largest recall.
    """

    categories: Mapping[int, str]
    iou_thresholds: np.ndarray
    recall_grid: np.ndarray
    precision: np.ndarray
    recall: np.ndarray

    def numbers(self, categories: Iterable[int] | None = None) -> dict[str, float]:
        """Returns the twelve numbers of COCO.

        Args:
          categories: ids over which to average; None: all. Ids without objects have no influence.

        Returns:
          `NUMBERS` -> fraction, or `MISSING`.
        """
        k = self._positions(categories)
        precision, recall = self.precision[:, :, k], self.recall[:, k]
        ap50, ap75 = (precision[np.isclose(self.iou_thresholds, t)] for t in (0.5, 0.75))
        values = (
            precision[..., _ALL, _TOP100],
            ap50[..., _ALL, _TOP100],
            ap75[..., _ALL, _TOP100],
            *(precision[..., area, _TOP100] for area in (_SMALL, _MEDIUM, _LARGE)),
            *(recall[..., _ALL, top] for top in (_TOP1, _TOP10, _TOP100)),
            *(recall[..., area, _TOP100] for area in (_SMALL, _MEDIUM, _LARGE)),
        )
        return dict(zip(NUMBERS, map(_mean, values), strict=True))

    def by_category(self) -> dict[int, dict[str, float]]:
        """Returns the twelve numbers of each category."""
        return {number: self.numbers([number]) for number in self.categories}

    def curves(self, iou: float = 0.5) -> np.ndarray:
        """Returns precision over `recall_grid` for each category.

        Args:
          iou: one of `iou_thresholds`.

        Returns:
          float64 `[categories, 101]`.
        """
        (position,) = np.flatnonzero(np.isclose(self.iou_thresholds, iou))
        return self.precision[position, :, :, _ALL, _TOP100].T

    def mean_curve(self, iou: float = 0.5) -> np.ndarray:
        """Returns the mean precision over `recall_grid` of the categories with objects.

        The mean of the curve is the AP of the threshold. Each value is `MISSING` where no category has objects.

        Args:
          iou: one of `iou_thresholds`.

        Returns:
          float64 `[101]`.
        """
        return np.array([_mean(values) for values in self.curves(iou).T])

    def _positions(self, categories):
        ids = list(self.categories)
        return list(range(len(ids))) if categories is None else [ids.index(number) for number in categories]


def evaluate(data: DetectionSet, detections: Detections) -> Evaluation:
    """Compares detections with the objects of a set.

    Crowds count neither way. Detections with labels that are no category have no influence.

    Args:
      data: the images; those without detections count.
      detections: of images of the set, at most one list for an image.
    """
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):  # pycocotools prints its progress
        evaluator = COCOeval(_index(data, _objects(data)), _index(data, _results(data, detections)), "bbox")
        evaluator.evaluate()
        evaluator.accumulate()
    parameters, results = evaluator.params, evaluator.eval
    return Evaluation(
        categories={int(number): data.categories[number] for number in parameters.catIds},
        iou_thresholds=np.asarray(parameters.iouThrs),
        recall_grid=np.asarray(parameters.recThrs),
        precision=results["precision"],
        recall=results["recall"],
    )


def _index(data, annotations):
    from pycocotools.coco import COCO

    result = COCO()
    result.dataset = {
        "images": [{"id": number} for number in data.image_ids.tolist()],
        "categories": [{"id": number, "name": name} for number, name in data.categories.items()],
        "annotations": annotations,
    }
    result.createIndex()
    return result


def _objects(data):
    o = data.objects
    columns = (data.image_ids[o.rows], o.labels, o.boxes, o.areas, o.crowds.astype(int))
    return _annotations(*(column.tolist() for column in columns))


def _results(data, detections):
    low, high = np.split(detections.boxes.astype(np.float32), 2, axis=1)
    extents = high - low
    boxes = np.concatenate([low, extents], axis=1).astype(np.float64)
    columns = (data.image_ids[detections.rows], detections.labels, boxes, boxes[:, 2] * boxes[:, 3])
    crowds = np.zeros(len(boxes), int)
    results = _annotations(*(column.tolist() for column in (*columns, crowds)))
    return [{**r, "score": s} for r, s in zip(results, detections.scores.tolist(), strict=True)]


def _annotations(image_ids, labels, boxes, areas, crowds):
    # Ids start at 1: pycocotools takes a match with an object of id 0 for none.
    return [
        {"id": i, "image_id": image, "category_id": label, "bbox": box, "area": area, "iscrowd": crowd}
        for i, (image, label, box, area, crowd) in enumerate(
            zip(image_ids, labels, boxes, areas, crowds, strict=True), start=1
        )
    ]


def _mean(values):
    present = values[values > MISSING]
    return float(present.mean()) if present.size else MISSING
