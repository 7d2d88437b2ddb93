"""Holds predictions for images: classes with probabilities, or boxes with scores."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np


@dataclass(frozen=True, eq=False)
class ClassPredictions:
    """Holds the predictions of a classifier for n images.

    >>> found = ClassPredictions(np.array([[0.0, np.log(3), -np.inf]]), ("cat", "dog", "owl"))
    >>> found.names, found.top(2)
    (['dog'], [[('dog', 0.75), ('cat', 0.25)]])

    Attributes:
      logits: float32 `[n, classes]`; -inf for the classes that evaluation excludes, which are those not seen yet.
      class_names: of the columns, in stream order.
      features: name -> `[n, ...]`, if they were requested.
    """

    logits: np.ndarray
    class_names: tuple[str, ...]
    features: Mapping[str, np.ndarray] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.logits)

    @cached_property
    def probabilities(self) -> np.ndarray:
        """The softmax of the logits, `[n, classes]`; 0 for excluded classes."""
        exponentials = np.exp(self.logits - self.logits.max(axis=1, keepdims=True))
        return exponentials / exponentials.sum(axis=1, keepdims=True)

    @property
    def labels(self) -> np.ndarray:
        """The column of the largest logit of each image, int `[n]`."""
        return self.logits.argmax(axis=1)

    @property
    def names(self) -> list[str]:
        """The name of the predicted class of each image."""
        return [self.class_names[label] for label in self.labels]

    def top_labels(self, k: int = 5) -> list[list[int]]:
        """Returns the columns of the k most probable classes of each image.

        Excluded classes are left out.
        """
        order = np.argsort(-self.logits, axis=1, kind="stable")[:, :k].tolist()
        return [
            [label for label in labels if row[label] > -np.inf] for labels, row in zip(order, self.logits, strict=True)
        ]

    def top(self, k: int = 5) -> list[list[tuple[str, float]]]:
        """Returns the k most probable classes of each image as (name, probability).

        The most probable class is first.
        """
        return [
            [(self.class_names[label], float(row[label])) for label in labels]
            for labels, row in zip(self.top_labels(k), self.probabilities, strict=True)
        ]


@dataclass(frozen=True, eq=False)
class BoxPredictions:
    """Holds the boxes that a detector finds in one image, the highest score first.

    Attributes:
      boxes: float32 `[n, 4]`, (x, y, width, height) in pixels of the image; x and y are those of the top left corner.
        A box may extend beyond the image.
      scores: float32 `[n]`, in [0, 1].
      class_ids: int32 `[n]`, category ids of the data set.
      class_names: of the boxes.
    """

    boxes: np.ndarray
    scores: np.ndarray
    class_ids: np.ndarray
    class_names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.boxes)

    @classmethod
    def select(
        cls, detections: Mapping[str, np.ndarray], names: Mapping[int, str], threshold: float
    ) -> "BoxPredictions":
        """Selects the detections of one image above a threshold.

        Args:
          detections: `scores` `[n]`, `labels` `[n]` and `boxes` `[n, 4]` of one image, see `detections.top_detections`.
          names: category id -> name. Detections of other ids, which are no category, are left out.
          threshold: smallest score.
        """
        labels = detections["labels"]
        chosen = (detections["scores"] >= threshold) & np.isin(labels, list(names))
        corners = detections["boxes"][chosen]
        boxes = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], axis=1)
        found = labels[chosen]
        return cls(boxes, detections["scores"][chosen], found, tuple(names[number] for number in found.tolist()))

    def top(self, k: int) -> "BoxPredictions":
        """Returns the k boxes with the highest scores."""
        return BoxPredictions(self.boxes[:k], self.scores[:k], self.class_ids[:k], self.class_names[:k])


def mask_unseen(logits: np.ndarray, mask: Sequence[bool] | np.ndarray) -> np.ndarray:
    """Returns logits with -inf for the classes outside of a mask.

    >>> mask_unseen(np.ones((1, 2), np.float32), [True, False]).tolist()
    [[1.0, -inf]]
    """
    return np.where(np.asarray(mask), logits, -np.inf).astype(np.float32)
