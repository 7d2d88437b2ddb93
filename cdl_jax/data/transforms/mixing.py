"""Mixes the images of a batch with soft targets: mixup and CutMix.

Both run in a compiled step on the device.

`mixup_or_cutmix` mixes image i of a batch with image n - 1 - i, as timm's batch mode does. One weight and one box are
drawn for the batch (Zhang et al., 2018; Yun et al., 2019). `cutmix` is DKT's.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from cdl_jax.options import Option, defaults

OPTIONS = {
    "mixup": Option(0.8, "the weight of mixup is drawn from Beta(mixup, mixup); 0: no mixup"),
    "cutmix": Option(1.0, "the weight of CutMix is drawn from Beta(cutmix, cutmix); 0: no CutMix"),
    "switch": Option(0.5, "probability of CutMix if both are on", maximum=1),
    "probability": Option(1.0, "probability that a batch is mixed", maximum=1),
    "smoothing": Option(0.1, "label smoothing, over all classes of the targets", maximum=1),
}


def mixup_or_cutmix(
    images: jax.Array, labels: jax.Array, class_mask: jax.Array, key: jax.Array, options: Mapping[str, Any]
) -> tuple[jax.Array, jax.Array]:
    """Mixes a batch with itself in reversed order, by mixup or CutMix.

    Args:
      images: float32 `[batch, height, width, 3]`.
      labels: int32 `[batch]`.
      class_mask: bool `[classes]`, the classes of the targets.
      key: PRNG key.
      options: overrides of `OPTIONS`.

    Returns:
      (images float32 `[batch, height, width, 3]`, targets float32 `[batch, classes]`).
    """
    options = defaults(OPTIONS, **options)
    targets = soft_labels(labels, class_mask, options["smoothing"])
    if not (options["mixup"] or options["cutmix"]):
        return images, targets
    keys = jax.random.split(key, 5)
    candidates = {}
    if options["mixup"]:
        weight = jax.random.beta(keys[0], options["mixup"], options["mixup"])
        candidates["mixup"] = mixup(images, weight), weight
    if options["cutmix"]:
        height, width = images.shape[1:3]
        center = jax.random.randint(keys[1], (2,), 0, jnp.array([height, width]))
        box = cutmix_box(jax.random.beta(keys[2], options["cutmix"], options["cutmix"]), center, height, width)
        candidates["cutmix"] = cutmix_images(images, box), kept_area(box, height, width)
    selected = next(iter(candidates.values()))
    if len(candidates) == 2:
        use_cutmix = jax.random.uniform(keys[3]) < options["switch"]
        selected = jax.tree.map(lambda a, b: jnp.where(use_cutmix, a, b), candidates["cutmix"], candidates["mixup"])
    mixed, weight = selected
    if options["probability"] < 1:
        is_mixed = jax.random.uniform(keys[4]) < options["probability"]
        mixed, weight = jnp.where(is_mixed, mixed, images), jnp.where(is_mixed, weight, 1.0)
    return mixed, mixup(targets, weight)


def soft_labels(labels: jax.Array, class_mask: jax.Array, smoothing: float) -> jax.Array:
    """Smooths one-hot labels.

    The label has 1 - smoothing, and the classes of the mask share smoothing evenly.

    >>> soft_labels(jnp.array([0]), jnp.array([True, True, False]), 0.5).tolist()
    [[0.75, 0.25, 0.0]]

    Args:
      labels: int32 `[batch]`.
      class_mask: bool `[classes]`.
      smoothing: in [0, 1].

    Returns:
      float32 `[batch, classes]`.
    """
    one_hot = jax.nn.one_hot(labels, len(class_mask))
    return (1 - smoothing) * one_hot + smoothing * class_mask / class_mask.sum()


def mixup(x: jax.Array, weight: jax.Array | float) -> jax.Array:
    """Mixes an array with itself in reversed order: `weight x + (1 - weight) x[::-1]`.

    >>> mixup(jnp.array([0.0, 1.0]), 0.75).tolist()
    [0.25, 0.75]
    """
    return weight * x + (1 - weight) * x[::-1]


def cutmix_box(
    weight: jax.Array | float, center: Sequence[jax.Array | int], height: int, width: int
) -> tuple[jax.Array, jax.Array, jax.Array, jax.Array]:
    """Computes the box of CutMix: 1 - weight of the area, clipped at the border.

    >>> tuple(int(edge) for edge in cutmix_box(0.75, (4, 4), 8, 8))
    (2, 6, 2, 6)

    Args:
      weight: fraction of the area that stays, in [0, 1].
      center: (row, column) in pixels.
      height: of the image in pixels.
      width: of the image in pixels.

    Returns:
      (top, bottom, left, right), int32 scalars.
    """
    side_fraction = jnp.sqrt(1 - weight)
    edges = []
    for size, middle in ((height, center[0]), (width, center[1])):
        half = jnp.floor(size * side_fraction).astype(jnp.int32) // 2
        edges += [jnp.clip(middle - half, 0, size), jnp.clip(middle + half, 0, size)]
    return tuple(edges)


def cutmix_images(images: jax.Array, box: Sequence[jax.Array | int], others: jax.Array | None = None) -> jax.Array:
    """Replaces the pixels within a box by those of other images.

    Args:
      images: float32 `[batch, height, width, channels]`.
      box: (top, bottom, left, right) in pixels.
      others: of the same shape; None: `images` in reversed order.

    Returns:
      float32 of the same shape.
    """
    top, bottom, left, right = box
    rows, columns = jnp.arange(images.shape[1])[:, None], jnp.arange(images.shape[2])
    inside = (rows >= top) & (rows < bottom) & (columns >= left) & (columns < right)
    return jnp.where(inside[:, :, None], images[::-1] if others is None else others, images)


def kept_area(box: Sequence[jax.Array | int], height: int, width: int) -> jax.Array | float:
    """Returns the fraction of the image's area outside a box.

    >>> kept_area((0, 4, 0, 4), 8, 8)
    0.75
    """
    top, bottom, left, right = box
    return 1 - (bottom - top) * (right - left) / (height * width)


def cutmix(
    images: jax.Array, labels: jax.Array, key: jax.Array, probability: jax.Array | float
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Applies DKT's CutMix to a batch with some probability.

    Each image receives a box of another image, selected by a permutation of the batch. The weight, from Beta(1, 1), and
    the box are drawn once per batch. DKT's code uses the original `labels` alone. CutMix itself has the loss
    `weight CE(labels) + (1 - weight) CE(other_labels)`.

    Args:
      images: float32 `[batch, height, width, channels]`.
      labels: int32 `[batch]`.
      key: PRNG key.
      probability: of mixing the batch, may be traced; 1 or more: always.

    Returns:
      (images of the same shape, int32 `[batch]` labels of the boxes, weight float32: the fraction of each image that
      stays).
    """
    keys = jax.random.split(key, 4)
    height, width = images.shape[1:3]
    order = jax.random.permutation(keys[0], len(images))
    center = jax.random.randint(keys[1], (2,), 0, jnp.array([height, width]))
    box = cutmix_box(jax.random.uniform(keys[2]), center, height, width)
    is_mixed = jax.random.uniform(keys[3]) < probability
    mixed = jnp.where(is_mixed, cutmix_images(images, box, jnp.take(images, order, axis=0)), images)
    return mixed, jnp.take(labels, order), jnp.where(is_mixed, kept_area(box, height, width), 1.0)


def cutmix_probability(ramp: str, target: float, epoch: jax.Array | int, epochs: int) -> jax.Array | float:
    """Returns the probability of `cutmix` in an epoch, which starts at 0.1.

    >>> cutmix_probability("linear", 0.5, 0, 4), cutmix_probability("linear", 0.5, 2, 4)
    (0.1, 0.30000000000000004)

    Args:
      ramp: "linear": towards `target`. "as_coded": by `target - 0.1 / epochs` per epoch, as in DKT's code, where a
        bracket is missing; from about the third epoch every batch is mixed.
      target: the probability after the last epoch.
      epoch: of the task, from 0, may be traced.
      epochs: of the task.
    """
    return 0.1 + epoch * ((target - 0.1) / epochs if ramp == "linear" else target - 0.1 / epochs)
