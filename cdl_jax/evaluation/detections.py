"""Converts the outputs of a detector to scored boxes in pixels."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.errors import UserError


def top_detections(logits: jax.Array, boxes: jax.Array, sizes: jax.Array, top: int = 100) -> dict[str, jax.Array]:
    """Selects the best pairs of a query and a class for each image. Jittable.

    A query can appear with several classes. Boxes are not clipped to the image.

    Args:
      logits: float32 `[batch, queries, classes]`, of the last prediction level.
      boxes: float32 `[batch, queries, 4]`, (center x, center y, width, height) relative to the image.
      sizes: int32 `[batch, 2]`, (height, width) of the files in pixels.
      top: number of detections of an image, at most queries x classes.

    Returns:
      `scores` float32 `[batch, top]`, sigmoid, descending; `labels` int32 `[batch, top]`; `boxes` float32 `[batch, top,
      4]`, (x0, y0, x1, y1) in pixels.

    Source: Deformable DETR (arXiv 2010.04159), as in ViDT and VkD.
    """
    batch, queries, classes = logits.shape
    scores, indices = jax.lax.top_k(jax.nn.sigmoid(logits).reshape(batch, -1), min(top, queries * classes))
    selected = jnp.take_along_axis(boxes, (indices // classes)[:, :, None], axis=1)
    centers, extents = jnp.split(selected, 2, axis=-1)
    corners = jnp.concatenate([centers - extents / 2, centers + extents / 2], axis=-1)
    scale = jnp.tile(sizes[:, ::-1].astype(jnp.float32), 2)[:, None, :]
    return {"scores": scores, "labels": (indices % classes).astype(jnp.int32), "boxes": corners * scale}


@dataclass(frozen=True, eq=False)
class Detections:
    """Detections of many images, on the host.

    rows: int32 `[m]`, rows of the images in their set.
    labels: int32 `[m]`, category ids.
    boxes: float32 `[m, 4]`, (x0, y0, x1, y1) in pixels.
    scores: float32 `[m]`.
    """

    rows: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray

    @classmethod
    def collect(cls, batches: Iterable[Mapping[str, np.ndarray]]) -> "Detections":
        """Collects the detections of batches.

        Args:
          batches: each has the arrays of `top_detections`, `rows` int32 `[batch]` and `weight` float32 `[batch]`, of
            the loader. Images of weight 0 are left out.

        Raises:
          UserError: a score or a box is not finite.
          ValueError: an image occurs twice.
        """
        parts = [_detections_of_batch(jax.device_get(dict(batch))) for batch in batches]
        images = np.concatenate([images for images, _ in parts])
        if len(np.unique(images)) < len(images):
            raise ValueError("an image occurs twice with a weight: its detections would count twice")
        return cls(*(np.concatenate(columns) for columns in zip(*(columns for _, columns in parts), strict=True)))

    def select(self, rows: np.ndarray, min_score: float = 0.0) -> "Detections":
        """Selects the detections of some images with at least a score, in their order."""
        selected = np.isin(self.rows, rows) & (self.scores >= min_score)
        return Detections(*(column[selected] for column in (self.rows, self.labels, self.boxes, self.scores)))


def _detections_of_batch(batch):
    """Returns the rows of the images that count, and the columns of `Detections`."""
    counted = batch["weight"] > 0
    rows, labels, boxes, scores = (batch[key][counted] for key in ("rows", "labels", "boxes", "scores"))
    wrong = ~(np.isfinite(scores).all(axis=1) & np.isfinite(boxes).all(axis=(1, 2)))
    if wrong.any():
        raise UserError(
            f"the detector's outputs for image {rows[wrong.argmax()]} of the set are not finite: its weights are "
            "damaged, or training diverged"
        )
    columns = np.repeat(rows, scores.shape[1]), labels.reshape(-1), boxes.reshape(-1, 4), scores.reshape(-1)
    return rows, columns
