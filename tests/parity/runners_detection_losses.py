"""Runners of the VkD fixtures of detection: matching, losses, distillation, optimizer and training steps.

A runner maps (config, arrays) to {"out/..." or "grad/...": array}.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cdl_jax.methods.shared import detection_boxes, detection_losses, detection_matching, detection_token_labels

# The authors' names of weights and costs -> ours.
WEIGHTS = {"loss_ce": "class_weight", "loss_bbox": "box_weight", "loss_giou": "giou_weight"}
WEIGHTS["loss_iouaware"] = "iou_weight"
COSTS = {"class": "class_cost", "box_l1": "box_cost", "giou": "giou_cost"}


def loss_options(config):
    """Options of the set losses from the config of a case."""
    options = {**detection_losses.OPTIONS, "iou_target_gradient": True, "iou_weight": 0.0}
    options |= {ours: float(config["weights"].get(theirs, 0)) for theirs, ours in WEIGHTS.items()}
    costs = config.get("cost_weights", {})
    options |= {ours: float(costs[theirs]) for theirs, ours in COSTS.items() if theirs in costs}
    options |= {"focal_alpha": config.get("focal_alpha", 0.25), "focal_gamma": float(config.get("gamma", 2))}
    return ConfigDict(options)


def padded_targets(targets, least=1):
    """Batch arrays of targets, a list of (labels, boxes), padded to one number of objects."""
    length = max(least, *(len(labels) for labels, _ in targets))
    boxes = np.tile(np.float32([0.5, 0.5, 1, 1]), (len(targets), length, 1))
    labels, valid = np.zeros((len(targets), length), np.int32), np.zeros((len(targets), length), bool)
    for i, (ids, own) in enumerate(targets):
        boxes[i, : len(ids)], labels[i, : len(ids)], valid[i, : len(ids)] = own, ids, True
    return {"boxes": boxes, "labels": labels, "valid": valid}


def targets_of(arrays, prefix="in/target"):
    count = sum(name.startswith(prefix) and name.endswith("_labels") for name in arrays)
    return [(arrays[f"{prefix}{i}_labels"], arrays[f"{prefix}{i}_boxes"]) for i in range(count)]


def run_matcher_losses(config, arrays, solver="host"):
    """Costs, matches, losses and gradients of all levels."""
    options, targets = loss_options(config), targets_of(arrays)
    options.solver, batch = solver, padded_targets(targets)
    names = [name for name in ("logits", "boxes", "iou_logits") if f"in/{name}" in arrays]
    predictions = {name: jnp.asarray(arrays[f"in/{name}"]) for name in names}
    single = predictions["logits"].ndim == 3

    def outputs_of(predictions):
        outputs = {name: array[None] if single else array for name, array in predictions.items()}
        return outputs | ({"iou_logits": outputs["iou_logits"][..., 0]} if "iou_logits" in outputs else {})

    @jax.jit
    def compute(predictions):
        def loss(predictions):
            return detection_losses.detection_loss(options, outputs_of(predictions), batch)

        outputs = outputs_of(predictions)
        costs = detection_matching.pair_costs(
            options,
            detection_matching.focal_class_costs(outputs["logits"]),
            outputs["boxes"],
            batch["boxes"],
            batch["labels"],
        )
        matches = detection_losses.match_queries(options, outputs, batch)
        return costs, matches, jax.value_and_grad(loss, has_aux=True)(predictions)

    costs, matches, ((total, terms), gradients) = jax.device_get(compute(predictions))
    ours = {f"out/{name}": value for name, value in terms.items()} | {"out/loss_total": total}
    ours |= {f"grad/{name}": gradient for name, gradient in gradients.items()}
    for level in range(len(costs)):
        for i, (labels, _) in enumerate(targets):
            suffix = f"_{i}" if single else f"_layer{level}_image{i}"
            ours[f"out/cost{suffix}"] = costs[level, i][:, : len(labels)]
            ours[f"out/match{suffix}"] = match_rows(matches[level, i])
            ours[f"out/number_matched_{i}"] = (matches[level, i] >= 0).sum()
    for i in range(len(targets)):
        ours |= {f"out/postprocess{i}_{name}": value for name, value in detections(predictions, i, single).items()}
    if config.get("case") == "ties":
        ours |= {f"{name}_tied_sum": tied_sum(ours[name]) for name in ("grad/logits", "grad/boxes")}
    return ours


def detections(predictions, image, single, height=480, width=640, number=100):
    """The best pairs of query and class of an image's last level, their boxes in pixels."""
    logits, boxes = (
        predictions[name][image] if single else predictions[name][-1, image] for name in ("logits", "boxes")
    )
    classes = logits.shape[-1]
    scores, best = jax.lax.top_k(jax.nn.sigmoid(logits).reshape(-1), min(number, logits.size))
    first, last = detection_boxes.corners(boxes[best // classes])
    pixels = jnp.concatenate([first, last], axis=-1) * jnp.float32([width, height, width, height])
    return {"scores": scores, "labels": best % classes, "boxes": pixels}


def match_rows(queries):
    """Rows (queries ascending, their targets), as the authors' matcher returns them."""
    targets = np.flatnonzero(queries >= 0)
    order = np.argsort(queries[targets], kind="stable")
    return np.stack([queries[targets][order], targets[order]])


def tied_sum(gradient, tied=(2, 7)):
    """The sum of the equal predictions, then the others."""
    return np.concatenate([gradient[:, tied].sum(axis=1, keepdims=True), np.delete(gradient, tied, axis=1)], axis=1)


def run_token_labels(config, arrays):
    shape = tuple(max(sizes) for sizes in zip(*config["image_sizes"], strict=True))
    maps, objects = [], 0
    for i in range(len(config["image_sizes"])):
        masks, labels = arrays[f"in/target{i}_masks"].astype(bool), arrays[f"in/target{i}_labels"]
        padded = np.zeros((max(len(masks), 1), *shape), bool)
        padded[: len(masks), : masks.shape[1], : masks.shape[2]] = masks
        maps.append(detection_token_labels.label_map(padded, jnp.asarray(np.append(labels, 0))))
        objects += len(labels)
    images, levels = len(maps), [tuple(level) for level in config["levels"]]
    sizes = [np.tile(np.int32(size), (images, 1)) for size in (shape, *levels)]
    shares = [
        detection_token_labels.class_shares(jnp.stack(maps), config["classes"], sizes[0], sizes[k + 1], level)
        for k, level in enumerate(levels)
    ]
    inside = [np.ones((images, *level), bool) for level in levels]
    options = ConfigDict({**detection_token_labels.OPTIONS, "focal_weight": 1.0, "dice_weight": 1.0})
    logits = [jnp.asarray(arrays[f"in/logits_level{k}"]) for k in range(len(levels))]

    @jax.jit
    @functools.partial(jax.grad, has_aux=True)
    def gradients_and_terms(logits):
        return detection_token_labels.token_losses(options, logits, shares, inside, max(objects, 1))

    gradients, losses = gradients_and_terms(logits)
    ours = {f"out/soft_label_level{k}": share for k, share in enumerate(shares)}
    ours |= {f"grad/logits_level{k}": gradient for k, gradient in enumerate(gradients)}
    return ours | {f"out/{name}": value for name, value in losses.items()}


RUNNERS = {
    "detect_matcher_losses": run_matcher_losses,
    "detect_matcher_edge": run_matcher_losses,
    "detect_token_label_loss": run_token_labels,
}
