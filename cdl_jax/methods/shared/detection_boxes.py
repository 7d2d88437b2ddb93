"""Corners and overlaps of boxes.

Boxes are float `[..., 4]`: center x, center y, width and height, relative to the image.
"""

import jax
import jax.numpy as jnp


def corners(boxes: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the upper left and the lower right corner of each box.

    Returns:
      Two arrays `[..., 2]`, (x, y).

    >>> first, last = corners(jnp.array([0.5, 0.5, 0.5, 1.0]))
    >>> first.tolist(), last.tolist()
    ([0.25, 0.0], [0.75, 1.0])
    """
    centers, half = boxes[..., :2], boxes[..., 2:] / 2
    return centers - half, centers + half


def overlaps(boxes: jax.Array, others: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes the intersection over union (IoU) and the generalized IoU.

    GIoU = IoU - (hull - union) / hull, where the hull is the smallest box around both boxes.

    Args:
      boxes: `[..., 4]`.
      others: `[..., 4]`, broadcast against `boxes`. One of two boxes has a positive area.

    Returns:
      IoU in [0, 1] and GIoU in [-1, 1], `[...]`.

    Source:
      Rezatofighi et al., "Generalized Intersection over Union", CVPR 2019.

    >>> left, right = jnp.array([0.25, 0.5, 0.5, 1.0]), jnp.array([0.875, 0.5, 0.25, 1.0])
    >>> [float(value) for value in overlaps(left, right)]  # a gap of 1/4 within a hull of 1
    [0.0, -0.25]
    """
    (first, last), (other_first, other_last) = corners(boxes), corners(others)
    shared_sides = jnp.maximum(jnp.minimum(last, other_last) - jnp.maximum(first, other_first), 0)
    intersection = shared_sides.prod(axis=-1)
    union = (last - first).prod(axis=-1) + (other_last - other_first).prod(axis=-1) - intersection
    hull = (jnp.maximum(last, other_last) - jnp.minimum(first, other_first)).prod(axis=-1)
    iou = intersection / union
    return iou, iou - (hull - union) / hull
