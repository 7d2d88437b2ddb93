"""Losses of a detector whose queries are matched with target boxes.

The losses are DETR's set losses, with focal class losses by default. Terms keep the names of the authors' code:
`loss_ce` belongs to the last prediction level, `loss_ce_<k>` to level k. All sums span the complete batch, so the
number of devices has no effect. Images form groups, one for each device of the authors' code; a loss is the mean of the
losses of all groups.

Axes: levels L, images N, queries Q, targets n, classes K.

Sources:
  Carion et al., "DETR", arXiv 2005.12872. Lin et al., "Focal Loss", arXiv 1708.02002. Song et al., "ViDT+", arXiv
  2204.07962 (IoU-aware loss).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp
import optax
from ml_collections import ConfigDict

from cdl_jax.errors import UserError
from cdl_jax.methods.shared import detection_matching
from cdl_jax.methods.shared.detection_boxes import overlaps
from cdl_jax.options import Option

OPTIONS = {
    **detection_matching.OPTIONS,
    "class_weight": Option(2.0, "weight of the class loss"),
    "box_weight": Option(5.0, "weight of the L1 distance of boxes"),
    "giou_weight": Option(2.0, "weight of 1 - generalized IoU"),
    "iou_weight": Option(2.0, "weight of the IoU-aware loss, if the detector predicts IoUs"),
    "focal_alpha": Option(0.25, "weight of the class of an object in the focal loss; others: 1 - alpha", maximum=1),
    "focal_gamma": Option(2.0, "exponent of the focal loss"),
    "auxiliary": Option(True, "also the losses of all levels before the last"),
    "class_loss": Option(
        "focal",
        "focal: sigmoids, independent classes; softmax: classes and, last, the background, for a detector without neck",
        choices=("focal", "softmax"),
    ),
    "background_weight": Option(0.1, "weight of queries without a target in the softmax loss"),
    "iou_target_gradient": Option(
        False, "the IoU-aware loss also moves the boxes towards the predicted IoU, as in the authors' code"
    ),
}

# Term -> its weight in OPTIONS.
_WEIGHTS = {
    "loss_ce": "class_weight",
    "loss_bbox": "box_weight",
    "loss_giou": "giou_weight",
    "loss_iouaware": "iou_weight",
}

_CLASS_COSTS = {
    "focal": detection_matching.focal_class_costs,
    "softmax": detection_matching.softmax_class_costs,
}


def check(options: ConfigDict, section: str) -> None:
    """Checks that the options fit together.

    Args:
      options: a section with the keys of `OPTIONS`.
      section: its name, for the message.

    Raises:
      UserError: all costs or all weights are 0, or the solver cannot run.
    """
    detection_matching.check(options, section)
    if not (options.class_weight or options.box_weight or options.giou_weight):
        raise UserError(f"{section}: class_weight, box_weight and giou_weight are 0, so nothing is learned; raise one")


def detection_loss(
    options: ConfigDict, outputs: Mapping[str, jax.Array], targets: Mapping[str, jax.Array], groups: int = 1
) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Computes the weighted sum of all losses.

    Queries are matched with targets at each level.

    Args:
      options: a section with the keys of `OPTIONS`.
      outputs: `logits` float `[L, N, Q, K]`, `boxes` float `[L, N, Q, 4]`; optionally `iou_logits` `[L, N, Q]`.
      targets: `boxes` float `[N, n, 4]`, `labels` int32 `[N, n]`, `valid` bool `[N, n]`. All losses are NaN if a valid
        label is no class.
      groups: number of groups of images.

    Returns:
      The loss, a scalar, and its terms without their weights, `{name: scalar}`. Further entries for the log are
      `class_error` and `cardinality_error`.
    """
    if not options.auxiliary:
        outputs = {name: outputs[name][-1:] for name in ("logits", "boxes", "iou_logits") if name in outputs}
    queries = match_queries(options, outputs, targets)
    by_level = level_losses(options, outputs, targets, queries, groups)
    total = sum(options[weight] * by_level[name].sum() for name, weight in _WEIGHTS.items() if name in by_level)
    return total, {
        **name_by_level(by_level),
        "class_error": class_error(outputs["logits"][-1], targets["labels"], queries[-1]),
    }


def match_queries(options: ConfigDict, outputs: Mapping[str, jax.Array], targets: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the query of each target at each level.

    Args:
      options, outputs, targets: as in `detection_loss`.

    Returns:
      int32 `[L, N, n]`, -1 for targets without a query.
    """
    class_costs = _CLASS_COSTS[options.class_loss](outputs["logits"])
    costs = detection_matching.pair_costs(options, class_costs, outputs["boxes"], targets["boxes"], targets["labels"])
    return detection_matching.match(costs, targets["valid"], options.solver)


def level_losses(
    options: ConfigDict,
    outputs: Mapping[str, jax.Array],
    targets: Mapping[str, jax.Array],
    queries: jax.Array,
    groups: int = 1,
) -> dict[str, jax.Array]:
    """Computes the losses of each level for given matches, without their weights.

    Args:
      options, outputs, targets, groups: as in `detection_loss`.
      queries: int32 `[L, N, n]`, see `match_queries`.

    Returns:
      `{term: [L]}`.
    """
    logits, normalizer = outputs["logits"], object_normalizer(targets["valid"], groups)
    num_classes = logits.shape[-1] - (options.class_loss == "softmax")
    is_known = (targets["labels"] >= 0) & (targets["labels"] < num_classes) | ~targets["valid"]
    # Without this an object whose label has no output would silently be learned as background.
    normalizer = jnp.where(is_known.all(), normalizer, jnp.nan)
    labels = query_labels(queries, targets["labels"], logits.shape[2], fill=logits.shape[-1])
    losses, iou = box_losses(outputs["boxes"], targets["boxes"], queries)
    if "iou_logits" in outputs:
        iou = iou if options.iou_target_gradient else jax.lax.stop_gradient(iou)
        iou_logits = _matched(outputs["iou_logits"], queries)
        losses["loss_iouaware"] = optax.sigmoid_binary_cross_entropy(iou_logits, iou)
    by_level = {
        name: jnp.where(queries >= 0, values, 0).sum(axis=(1, 2)) / normalizer for name, values in losses.items()
    }
    if options.class_loss == "focal":
        by_level["loss_ce"] = focal_loss(options, logits, labels).sum(axis=(1, 2, 3)) / normalizer
    else:
        by_level["loss_ce"] = softmax_loss(logits, labels, options.background_weight, groups)
    return {**by_level, "cardinality_error": cardinality_error(logits, targets["valid"])}


def object_normalizer(valid: jax.Array, groups: int = 1) -> jax.Array:
    """Returns the divisor of sums over the batch.

    The divisor is the number of objects, at least 1 for each group. A group divides its sums by
    max(1, objects / groups). The mean of all groups is the sum over the batch, divided by this divisor.

    Args:
      valid: bool `[N, n]`.
      groups: number of groups of images.

    >>> float(object_normalizer(jnp.array([[True, False], [True, True]])))
    3.0
    >>> float(object_normalizer(jnp.zeros((4, 2), bool), groups=2))
    2.0
    """
    return jnp.maximum(valid.sum(), groups).astype(jnp.float32)


def query_labels(queries: jax.Array, labels: jax.Array, num_queries: int, fill: int) -> jax.Array:
    """Returns the label of each query: that of its target, or `fill` without a target.

    Args:
      queries: int32 `[L, N, n]`.
      labels: int32 `[N, n]`.
      num_queries: Q.
      fill: label of queries without a target.

    Returns:
      int32 `[L, N, Q]`.

    >>> query_labels(jnp.array([[[2, -1, 0]]]), jnp.array([[5, 6, 7]]), num_queries=4, fill=9).tolist()
    [[[7, 9, 5, 9]]]
    """
    levels, images, _ = queries.shape
    index = jnp.arange(levels)[:, None, None], jnp.arange(images)[:, None], jnp.where(queries < 0, num_queries, queries)
    return jnp.full((levels, images, num_queries), fill, jnp.int32).at[index].set(labels[None], mode="drop")


def focal_loss(options: ConfigDict, logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Computes the focal loss of each class of each query, `[..., K]`.

    Args:
      options: `focal_alpha` and `focal_gamma`.
      logits: `[..., K]`.
      labels: int32 `[...]`; K for queries without a target, whose classes are all absent.
    """
    targets = jax.nn.one_hot(labels, logits.shape[-1], dtype=logits.dtype)
    return optax.sigmoid_focal_loss(logits, targets, alpha=options.focal_alpha, gamma=options.focal_gamma)


def softmax_loss(logits: jax.Array, labels: jax.Array, background_weight: float, groups: int = 1) -> jax.Array:
    """Computes the weighted mean cross-entropy over classes and background.

    Args:
      logits: `[L, N, Q, K]`; the last column is the background.
      labels: int32 `[L, N, Q]`; K for queries without a target.
      background_weight: weight of these queries; other queries have weight 1.
      groups: number of groups of images.

    Returns:
      `[L]`, the mean of the groups.
    """
    background = logits.shape[-1] - 1
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, jnp.minimum(labels, background))
    weights = jnp.where(labels >= background, background_weight, 1.0)

    def sum_groups(values):
        return values.reshape(len(values), groups, -1).sum(axis=-1)

    return (sum_groups(weights * losses) / sum_groups(weights)).mean(axis=-1)


def box_losses(boxes: jax.Array, target_boxes: jax.Array, queries: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
    """Computes the losses of each target with the box of its query.

    Args:
      boxes: `[L, N, Q, 4]`, predictions.
      target_boxes: `[N, n, 4]`.
      queries: int32 `[L, N, n]`. Values of targets without a query are finite and have no meaning.

    Returns:
      `{"loss_bbox": L1, "loss_giou": 1 - GIoU}` and the IoU, each `[L, N, n]`.
    """
    predicted = _matched(boxes, queries)
    iou, giou = overlaps(predicted, target_boxes)
    difference = predicted - target_boxes
    # |x| with the gradient 0 at 0; that of `jnp.abs` is 1.
    distance = (difference * jax.lax.stop_gradient(jnp.sign(difference))).sum(axis=-1)
    return {"loss_bbox": distance, "loss_giou": 1 - giou}, iou


def class_error(logits: jax.Array, labels: jax.Array, queries: jax.Array) -> jax.Array:
    """Returns the percentage of matched queries that predict another class.

    A query predicts the class of its largest logit.

    Args:
      logits: `[N, Q, K]`.
      labels: int32 `[N, n]`.
      queries: int32 `[N, n]`.

    Returns:
      A scalar; 100 if no query is matched.
    """
    matched = queries >= 0
    correct = _matched(logits.argmax(axis=-1), queries) == labels
    return 100 - 100 * (correct & matched).sum() / jnp.maximum(matched.sum(), 1)


def cardinality_error(logits: jax.Array, valid: jax.Array) -> jax.Array:
    """Returns the mean absolute difference between numbers of objects and detections.

    Detections are queries whose largest logit is not that of the last class. The last class is the background only with
    `class_loss="softmax"`. With "focal" it is a class like the others, so this number has no meaning there; the
    authors' code logs it.

    Args:
      logits: `[L, N, Q, K]`.
      valid: bool `[N, n]`.

    Returns:
      `[L]`.
    """
    detected = (logits.argmax(axis=-1) != logits.shape[-1] - 1).sum(axis=-1)
    return jnp.abs(detected - valid.sum(axis=-1)).astype(jnp.float32).mean(axis=-1)


def name_by_level(by_level: Mapping[str, jax.Array]) -> dict[str, jax.Array]:
    """Names the values of each level.

    Values of the last level have no suffix. Those of level k have the suffix `_k`.

    >>> {name: int(value) for name, value in name_by_level({"loss": jnp.array([5, 6, 7])}).items()}
    {'loss': 7, 'loss_0': 5, 'loss_1': 6}
    """
    named = {name: values[-1] for name, values in by_level.items()}
    return named | {f"{name}_{k}": values[k] for name, values in by_level.items() for k in range(len(values) - 1)}


def _matched(values, queries):
    """Returns the values of the given queries.

    Args:
      values: `[..., Q, *rest]`.
      queries: `[..., n]`; -1 selects the values of query 0.

    Returns:
      `[..., n, *rest]`.
    """
    index = jnp.maximum(queries, 0).reshape(*queries.shape, *[1] * (values.ndim - queries.ndim))
    return jnp.take_along_axis(values, index, axis=queries.ndim - 1)
