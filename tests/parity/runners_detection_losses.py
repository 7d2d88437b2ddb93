"""Runners of the VkD fixtures of detection: losses and training.

The runners compute matching, losses, distillation, optimizer and training steps.

A runner maps (config, arrays) to {"out/..." or "grad/...": array}.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
from ml_collections import ConfigDict

from cdl_jax import config as base
from cdl_jax.data.detection.segmentations import label_map
from cdl_jax.distill.base import NetworkSpec
from cdl_jax.distill.detection import projected_tokens, token_matching
from cdl_jax.distill.detection.base import token_rows
from cdl_jax.evaluation.detections import top_detections
from cdl_jax.methods import vidt as method_module
from cdl_jax.methods.base import StreamInfo, join, split
from cdl_jax.methods.shared import (
    detection_losses,
    detection_matching,
    detection_optimizer,
    detection_token_labels,
)
from cdl_jax.models.detection import state_dicts
from cdl_jax.models.modules import feature_norms, orthogonal
from cdl_jax.options import defaults
from tests.parity.compiled import compiled
from tests.parity.runners_detection_model import options_of as detector_options
from tests.parity.runners_detection_model import parameters, shapes_of
from tests.support.contexts import context

# The authors' names of weights and costs -> ours.
WEIGHTS = {"loss_ce": "class_weight", "loss_bbox": "box_weight", "loss_giou": "giou_weight"}
WEIGHTS["loss_iouaware"] = "iou_weight"
COSTS = {"class": "class_cost", "box_l1": "box_cost", "giou": "giou_cost"}

IMAGE_SIZE = 480, 640  # of the post-processing in `detect_matcher_losses`


def loss_options(config):
    """Options of the set losses from the config of a case."""
    options = defaults(detection_losses.OPTIONS, iou_target_gradient=True, iou_weight=0.0)
    options |= {ours: float(config["weights"].get(theirs, 0)) for theirs, ours in WEIGHTS.items()}
    costs = config.get("cost_weights", {})
    options |= {ours: float(costs[theirs]) for theirs, ours in COSTS.items() if theirs in costs}
    options |= {"focal_alpha": config.get("focal_alpha", 0.25), "focal_gamma": float(config.get("gamma", 2))}
    return ConfigDict(options)


def padded_targets(targets, least=1):
    """Pads a batch of targets, a list of (labels, boxes), to one number of objects."""
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
    last = {name: array[-1] for name, array in outputs_of(predictions).items()}
    sizes = np.array([IMAGE_SIZE] * len(targets))
    best = jax.jit(top_detections)(last["logits"], last["boxes"], sizes)
    ours |= {f"out/postprocess{i}_{name}": array[i] for name, array in best.items() for i in range(len(targets))}
    if config.get("case") == "ties":
        ours |= {f"{name}_tied_sum": tied_sum(ours[name]) for name in ("grad/logits", "grad/boxes")}
    return ours


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
    maps, objects = np.zeros((len(config["image_sizes"]), *shape), np.uint8), 0
    for i in range(len(maps)):
        masks, labels = arrays[f"in/target{i}_masks"].astype(bool), arrays[f"in/target{i}_labels"]
        height, width = masks.shape[1:]
        maps[i, :height, :width] = label_map(masks, labels, (height, width))
        objects += len(labels)
    images, levels = len(maps), [tuple(level) for level in config["levels"]]
    sizes = [np.tile(np.int32(size), (images, 1)) for size in (shape, *levels)]
    inside = [np.ones((images, *level), bool) for level in levels]
    options = ConfigDict(defaults(detection_token_labels.OPTIONS, focal_weight=1.0, dice_weight=1.0))
    logits = [jnp.asarray(arrays[f"in/logits_level{k}"]) for k in range(len(levels))]

    @jax.jit
    def compute(maps, logits):
        shares = [
            detection_token_labels.class_shares(maps, config["classes"], sizes[0], sizes[k + 1], level)
            for k, level in enumerate(levels)
        ]

        def loss(logits):
            return detection_token_labels.token_losses(options, logits, shares, inside, max(objects, 1))

        return shares, jax.grad(loss, has_aux=True)(logits)

    shares, (gradients, losses) = compute(maps, logits)
    ours = {f"out/soft_label_level{k}": share for k, share in enumerate(shares)}
    ours |= {f"grad/logits_level{k}": gradient for k, gradient in enumerate(gradients)}
    return ours | {f"out/{name}": value for name, value in losses.items()}


def projector_variables(arrays, modules):
    """Returns the variables of projectors from the arrays of a case.

    `modules`: module -> prefix of the names of the module's arrays.
    """
    params, state = {}, {}
    for module, prefix in modules.items():
        raw, base = (arrays[f"{prefix}{name}"] for name in RAW_AND_BASE)
        params[module] = {"projector": {"raw": raw}} | {
            ours: arrays[f"{prefix}{theirs}"] for ours, theirs in (("scale", "weight"), ("bias", "bias"))
        }
        state[module] = {"projector": {"base": base}}
    return jax.tree.map(jnp.asarray, {"params": params, "state": state})


WEIGHT = "projector.parametrizations.weight"
RAW_AND_BASE = f"{WEIGHT}.original", f"{WEIGHT}.0.base"
PROJECTORS = (*(f"patch_projector_{level}" for level in range(1, 5)), "body_det_projector", "neck_det_projector")
# The authors' names of rows -> ours.
TERMS = {**{f"patch{i}": f"patch_{i + 1}" for i in range(4)}, "body_det": "body", "neck_det": "neck"}


def detector_outputs(arrays, role):
    """Returns tokens of "student" or "teacher" as a detector outputs them.

    All positions exist, and the images form one group.
    """
    maps = tuple(jnp.moveaxis(arrays[f"in/{role}_patch{i}"], 1, -1) for i in range(4))
    tokens = {name: jnp.asarray(arrays[f"in/{role}_{name.replace('tokens', 'det')}"]) for name in TOKENS}
    return {"patch_maps": maps, **tokens, "inside": tuple(jnp.ones((1, *x.shape[:3]), bool) for x in maps)}


TOKENS = "body_tokens", "neck_tokens"


def token_gradients(gradients):
    ours = {f"grad/student_patch{i}": jnp.moveaxis(g, -1, 1) for i, g in enumerate(gradients["patch_maps"])}
    return ours | {f"grad/student_{name.replace('tokens', 'det')}": gradients[name] for name in TOKENS}


def network_spec(outputs):
    shapes = {name: outputs[name].shape for name in TOKENS}
    return NetworkSpec(outputs["body_tokens"].shape[-1], 0, 0, 0, 1, None, None, outputs=shapes)


@compiled
def run_distil_module(config, arrays):
    """The scheme with its projectors, on tokens that are given."""
    student, teacher = (detector_outputs(arrays, role) for role in ("student", "teacher"))
    inside = student.pop("inside")
    variables = projector_variables(arrays, {name: f"param/{name}." for name in PROJECTORS})
    options = ConfigDict(defaults(projected_tokens.OPTIONS, weight=float(config["weight"])))
    scheme = projected_tokens.build(options, network_spec(teacher), network_spec(student))
    first = jax.eval_shape(scheme.init, jax.random.key(0))
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(jnp.shape, first)

    def loss(params, student):
        return scheme.loss({**variables, "params": params}, {**student, "inside": inside}, teacher, None, None)

    gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)
    (weighted, terms), (of_params, of_student) = gradient(variables["params"], student)
    ours = {"out/weighted": weighted, "out/loss_distil": terms["loss_distil"], **token_gradients(of_student)}
    for name in PROJECTORS:
        raw, base = variables["params"][name]["projector"]["raw"], variables["state"][name]["projector"]["base"]
        ours[f"out/{name}.matrix"] = orthogonal.orthogonal_weight(raw, base, "matrix_exp", raw.shape)
        ours[f"grad/{name}.{RAW_AND_BASE[0]}"] = of_params[name]["projector"]["raw"]
    projectors = projected_tokens.TokenProjectors(config["dim"])
    projected = projectors.apply(variables, token_rows({**student, "inside": inside}, options, 1))
    levels, images, queries, dim = student["neck_tokens"].shape
    for theirs, name in TERMS.items():
        ours[f"out/projected_{theirs}"] = projected[name][0]
    neck = projected["neck"].reshape(images, levels, queries, dim)
    return ours | {"out/projected_neck_det": jnp.moveaxis(neck, 1, 0).reshape(-1, dim)}


@compiled
def run_distil_loss(config, arrays):
    """The six distances of tokens that are projected already."""

    def loss(students):
        parts = []
        for name in TERMS:
            rows, teacher = students[name], arrays[f"in/teacher_{name}"]
            teacher = (jnp.moveaxis(teacher, 1, -1) if name.startswith("patch") else teacher).reshape(rows.shape)
            every = jnp.ones((1, len(rows)), bool)
            parts.append(projected_tokens.standardized_distance(rows[None], teacher[None], every))
        return sum(parts), jnp.stack(parts)

    students = {name: jnp.asarray(arrays[f"in/student_{name}_projected"]) for name in TERMS}
    (total, parts), gradients = jax.value_and_grad(loss, has_aux=True)(students)
    return {
        "out/loss_distil_unweighted": total,
        "out/parts": parts,
        **{f"grad/student_{name}_projected": gradient for name, gradient in gradients.items()},
    }


@compiled
def run_distil_unit(config, arrays):
    """One projector and its distance."""
    names = {"original": RAW_AND_BASE[0], "base": RAW_AND_BASE[1], "weight": "weight", "bias": "bias"}
    renamed = {names[name.removeprefix("param/")]: array for name, array in arrays.items() if name.startswith("param/")}
    variables = projector_variables(renamed, {"unit": ""})
    params, state = variables["params"]["unit"], variables["state"]["unit"]
    projector, every = projected_tokens.ScaledProjector(config["dim"]), jnp.ones((1, config["rows"]), bool)
    teacher = jnp.asarray(arrays["in/teacher"])

    def loss(params, student):
        projected = projector.apply({"params": params, "state": state}, student)
        return projected_tokens.standardized_distance(projected[None], teacher[None], every), projected

    gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)
    (value, projected), (of_params, of_student) = gradient(params, jnp.asarray(arrays["in/student"]))
    return {
        "out/loss": value,
        "out/projected": projected,
        "out/student_std": feature_norms.batch_norm(projected),
        "out/teacher_std": feature_norms.batch_norm(teacher),
        "grad/original": of_params["projector"]["raw"],
        "grad/weight": of_params["scale"],
        "grad/bias": of_params["bias"],
        "grad/student": of_student,
    }


@compiled
def run_token_matching(config, arrays):
    student, teacher = (detector_outputs(arrays, role) for role in ("student", "teacher"))
    inside = student.pop("inside")
    options = ConfigDict(defaults(token_matching.OPTIONS, weight=1.0))
    scheme = token_matching.build(options, network_spec(teacher), network_spec(student))

    def loss(student):
        return scheme.loss({}, {**student, "inside": inside}, teacher, None, None)[0]

    value, gradients = jax.value_and_grad(loss)(student)
    sums = token_matching.distance_sums({**student, "inside": inside}, teacher, options)
    return {"out/loss_distil_unweighted": value, "out/sum_before_root": sums[0], **token_gradients(gradients)}


def run_train_steps(config, arrays):
    """Runs steps of the method with a teacher.

    One canvas holds the images of all steps, so that one program serves all steps.
    """
    with jax.enable_x64(config.get("x64", False)):
        return train_steps(config, {name: widen(array, config) for name, array in arrays.items()})


def widen(array, config):
    return array.astype(np.float64) if config.get("x64") and array.dtype == np.float32 else array


def train_steps(config, arrays):
    steps, dtype = len(config["image_sizes"]), arrays["in/images_0"].dtype
    canvas = tuple(64 * -(-max(arrays[f"in/images_{i}"].shape[axis] for i in range(steps)) // 64) for axis in (2, 3))
    batches = [train_batch(config, arrays, step, canvas) for step in range(steps)]
    method = method_of(config, dtype, images=len(batches[0]["images"]))
    models = {"student": method.student, "teacher": method.teacher.module}
    variables = {role: {"params": params_of(arrays, models[role], role, batches[0])} for role in models}
    variables["distill"] = student_projectors(arrays)
    (update,) = method.phases[0].updates
    trained, fixed = split(variables, update.trainable)

    def loss(trained, batch, at):
        total, outcome = update.loss(join(fixed, trained), batch, at)
        return total, outcome.metrics

    @jax.jit
    def step(trained, state, batch, epoch):
        at = dataclasses.replace(context(0, config["classes"]), epoch=epoch)
        (total, terms), gradients = jax.value_and_grad(loss, has_aux=True)(trained, batch, at)
        levels = detection_losses.detection_loss(method.options, apply_to(method.student, trained, batch), batch)[1]
        direction, state = update.optimizer.transform.update(gradients, state, trained)
        rate = update.optimizer.learning_rate(epoch)
        trained = jax.tree.map(lambda p, d: p - rate * d, trained, direction)
        logged = {"loss_total": total, "gradient_norm": optax.tree.norm(gradients), "learning_rate": rate}
        return trained, state, {**levels, **terms, **logged}

    state, logged, ours = update.optimizer.transform.init(trained), [], {}
    for i, batch in enumerate(batches):
        trained, state, terms = step(trained, state, batch, jnp.asarray(i, dtype))
        logged.append(jax.device_get(terms))
        ours |= {f"out/after_{i + 1}/{name}": array for name, array in to_torch(trained).items()}
    return ours | {f"out/{name}": np.array([terms[name] for terms in logged]) for name in logged[0]}


def method_of(config, dtype, images):
    """Returns the method with a case's settings; the images of a batch form one group."""
    options = base.default("vidt", data="coco", distill="projected_tokens")
    for role in ("student", "teacher"):
        network = detector_options({**config["student"], **config[role], "classes": config["classes"]})
        options[role].update({**network, "dtype": str(dtype), "weights": "random"})
    options.vidt.update({**loss_options(config), "auxiliary": "loss_ce_0" in config["weights"]})
    options.distill.weight = float(config["weights"]["loss_distil"])
    options.optim.update(optimizer_options(config))
    options.train.epochs, options.augment.group_size = config["epochs"], images
    classes = tuple(range(config["classes"]))
    return method_module.build(options, StreamInfo(len(classes), (len(classes),), class_ids=classes))


def train_batch(config, arrays, step, canvas):
    """Images of a step in a canvas, their sizes, extents and targets."""
    images = np.moveaxis(arrays[f"in/images_{step}"], 1, -1)
    extent = np.array(images.shape[1:3])
    padding = [(0, 0), *((0, side - length) for side, length in zip(canvas, extent, strict=True)), (0, 0)]
    most = max(sum(objects) for objects in config["objects"])  # one shape of targets for all steps
    return {
        "images": np.pad(images, padding),
        "sizes": np.array(config["image_sizes"][step], np.int32),
        "extents": np.tile(np.int32(extent), (len(images), 1)),
        **padded_targets(targets_of(arrays, f"in/target{step}_"), least=most),
    }


def apply_to(model, trained, batch):
    return model.apply(trained["student"], batch["images"], batch["sizes"], batch["extents"])


def params_of(arrays, model, role, batch):
    inputs = batch["images"], batch["sizes"], batch["extents"]
    return jax.tree.map(jnp.asarray, parameters(arrays, shapes_of(model, *inputs), prefix=f"param/{role}/"))


def student_projectors(arrays):
    return projector_variables(arrays, {name: f"param/student/{name}." for name in PROJECTORS})


def optimizer_options(config):
    names = {"lr": "learning_rate", "min_lr": "end_learning_rate", "clip_norm": "clip_norm", "eps": "eps"}
    options = {ours: config[theirs] for theirs, ours in names.items()}
    options |= {"betas": tuple(config["betas"]), "weight_decay": config["weight_decay"]}
    return ConfigDict(defaults(detection_optimizer.OPTIONS, **options))


def to_torch(trained):
    """Returns student's and projectors' parameters in the authors' names and layouts."""
    trained = jax.device_get(trained)
    named = state_dicts.to_torch(trained["student"]["params"])
    for module, params in trained["distill"]["params"].items():
        named[f"{module}.{RAW_AND_BASE[0]}"] = params["projector"]["raw"]
        named |= {f"{module}.weight": params["scale"], f"{module}.bias": params["bias"]}
    return named


def run_schedule(config, arrays):
    options = {"learning_rate": config["lr"], "end_learning_rate": config["min_lr"]}
    options |= {"warmup_epochs": config.get("warmup_epochs", 0), "warmup_learning_rate": config.get("warmup_lr", 1e-6)}
    rate = detection_optimizer.schedule(ConfigDict(defaults(detection_optimizer.OPTIONS, **options)), config["epochs"])
    return {"out/lr_used_in_epoch": jax.jit(jax.vmap(rate))(jnp.arange(float(config["epochs"])))}


RUNNERS = {
    "detect_train_steps": run_train_steps,
    "lr_cosine_detection": run_schedule,
    "detect_distil_module": run_distil_module,
    "detect_distil_loss": run_distil_loss,
    "detect_token_distil_unit": run_distil_unit,
    "detect_token_matching_baseline": run_token_matching,
    "detect_matcher_losses": run_matcher_losses,
    "detect_matcher_edge": run_matcher_losses,
    "detect_token_label_loss": run_token_labels,
}
