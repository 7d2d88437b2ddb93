"""Runners of the VkD fixtures of classification.

The runners compute orthogonal weights, normalizations, losses, networks and training steps.

A runner maps (config, arrays) to {"out/..." or "grad/...": array}.
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from cdl_jax import losses, optim
from cdl_jax.data.transforms import mixing
from cdl_jax.distill import vkd
from cdl_jax.distill.base import NetworkSpec
from cdl_jax.methods import vkd as vkd_method
from cdl_jax.methods.base import StreamInfo, join, split
from cdl_jax.models import deit, regnet
from cdl_jax.models.modules import feature_norms, orthogonal
from cdl_jax.models.modules.conv import apply
from cdl_jax.models.weights import pretrained
from cdl_jax.options import defaults
from tests.parity.compiled import compiled

LOGITS = ("student_logits_cls", "student_logits_dist")


@compiled
def run_orthogonal(config, arrays):
    shape = config["out_features"], config["in_features"]
    raw, base, cotangent = (arrays.get(name) for name in ("param/original", "param/base", "in/cotangent"))

    def value(raw):
        weight = orthogonal.orthogonal_weight(raw, base, config["map"], shape)
        return (cotangent * weight).sum(), weight

    (_, weight), gradient = jax.jit(jax.value_and_grad(value, has_aux=True))(jnp.asarray(raw))
    if base is None:  # any matrix with this R has the same reflections
        packed = jnp.asarray(arrays["out/original_at_init"])
        columns = min(shape)
        reflected = orthogonal.householder(packed, jnp.ones(columns))
        first = orthogonal.init_raw(reflected @ jnp.triu(packed[:columns]))
    else:
        first, _ = orthogonal.init_raw_and_base(jnp.zeros(shape), jnp.eye(max(shape))[:, min(shape) :])
    return {
        "out/weight": weight,
        "grad/original": gradient,
        "out/original_at_init": first,
        "out/weight_at_init": orthogonal.orthogonal_weight(first, base, config["map"], shape),
    }


@compiled
def run_orthogonal_init(config, arrays):
    shape = config["out_features"], config["in_features"]
    completion = arrays.get("in/completion", np.zeros((max(shape), 0), np.float32))
    raw, base = orthogonal.init_raw_and_base(jnp.asarray(arrays["in/initial_weight"]), jnp.asarray(completion))
    kind = orthogonal.default_map(*shape)
    return {"out/original": raw, "out/base": base, "out/weight": orthogonal.orthogonal_weight(raw, base, kind, shape)}


def run_collapse(config, arrays):
    """Runs steps of AdamW on the projector that copies the reference.

    The decay is on the raw matrix too.
    """
    shape = config["out_features"], config["in_features"]
    layer = orthogonal.OrthogonalDense(shape[0], "householder", reference_exact=True)
    optimizer = optax.adamw(config["lr"], *config["betas"], config["eps"], weight_decay=config["weight_decay"])
    params, state = {"raw": jnp.asarray(arrays["param/original_0"])}, {"base": jnp.asarray(arrays["param/base"])}
    steps, ours, values = optimizer.init(params), {}, []

    def loss(params):
        projected = layer.apply({"params": params, "state": state}, arrays["in/x"])
        return optax.huber_loss(projected, arrays["in/target"]).mean()

    @jax.jit
    def step(params, steps):
        value, gradient = jax.value_and_grad(loss)(params)
        weight = layer.apply({"params": params, "state": state}, jnp.eye(shape[1])).T
        direction, steps = optimizer.update(gradient, steps, params)
        return optax.apply_updates(params, direction), steps, value, gradient["raw"], weight

    for i in range(len(arrays["out/losses"])):
        params, steps, value, gradient, weight = step(params, steps)
        ours |= {f"out/weight_{i}": weight, f"grad/original_{i}": gradient}
        ours[f"out/original_{i + 1}"] = params["raw"]
        values.append(value)
    return ours | {"out/losses": values}


@compiled
def run_skew_expm(config, arrays):
    x, cotangent = arrays["in/x"], arrays["in/cotangent"]
    layer = orthogonal.OrthogonalDense(config["teacher_dim"], "skew_expm")

    def value(raw):
        y = layer.apply({"params": {"raw": raw}}, x)
        return (cotangent * y).sum(), y

    raw = jnp.asarray(arrays["param/weight"])
    (_, y), gradient = jax.jit(jax.value_and_grad(value, has_aux=True))(raw)
    weight = layer.apply({"params": {"raw": raw}}, jnp.eye(config["student_dim"])).T
    return {"out/P": weight, "out/y": y, "grad/weight": gradient}


@compiled
def run_whitening(config, arrays):
    x, epsilon = jnp.asarray(arrays["in/x"]), config["eps"]
    found = feature_norms.covariance(x, epsilon)
    return {
        "out/mean": x.mean(axis=0, keepdims=True),
        "out/cov": feature_norms.covariance(x),
        "out/cov_reg": found,
        "out/chol_L": jnp.linalg.cholesky(found),
        "out/whitened_cholesky": feature_norms.normalize(x, "whiten_cholesky", epsilon),
        "out/whitened_zca": feature_norms.normalize(x, "whiten_zca", epsilon),
    }


def run_losses(config, arrays):
    """The three terms with their gradients, from features and logits that are given."""
    inputs = {
        "original": jnp.asarray(arrays["param/original"]),
        **{name: jnp.asarray(arrays[f"in/{name}"]) for name in ("student_tokens", *LOGITS)},
    }
    options = loss_options(config, config["map"])
    teacher = vkd.feature_vector({"map": jnp.moveaxis(arrays["in/teacher_feature_map"], 1, -1)}, "map")
    projector = projector_of(options, config["teacher_channels"])

    def total(inputs):
        variables = projector_variables(inputs["original"], arrays["param/base"])
        projected = projector.apply(
            variables, vkd.feature_vector({"patch_tokens": inputs["student_tokens"]}, "patch_mean")
        )
        terms = step_terms(options, arrays, projected, teacher, *(inputs[name] for name in LOGITS))
        return terms["out/loss_total"], terms | {"out/projected": projected}

    (_, ours), gradients = jax.jit(jax.value_and_grad(total, has_aux=True))(inputs)
    return ours | {f"grad/{name}": gradient for name, gradient in gradients.items()} | {"out/pooled_teacher": teacher}


def step_terms(options, arrays, projected, teacher, logits, distilled):
    """Returns the losses of a step by the fixtures' names.

    `logits` are of the class head, `distilled` of the other head.
    """
    labels = losses.soft_cross_entropy(logits, arrays["in/soft_targets"])
    target = jnp.asarray(arrays["in/teacher_logits"])
    kl = options.logit_weight * vkd.logit_loss(options, distilled, target, jnp.ones(distilled.shape[-1], bool))
    feature = options.feature_weight * vkd.feature_loss(options, projected, teacher)
    return {
        "out/normalised_teacher": feature_norms.normalize(teacher, options.teacher_norm),
        "out/loss_cross_entropy": labels,
        "out/loss_kl": kl,
        "out/loss_feature": feature,
        "out/loss_total": labels + kl + feature,
    }


def loss_options(config, projector):
    options = {"feature_weight": float(config["alpha"]), "logit_weight": float(config["gamma"])}
    options |= {"temperature": float(config["T"]), "projector": projector, "reference_exact": True}
    return ConfigDict(defaults(vkd.OPTIONS, **options))


def projector_of(options, width):
    return vkd.Projector(width, options.projector, options.reference_exact)


def projector_variables(raw, base):
    return {"params": {"decayed_projector": {"raw": raw}}, "state": {"decayed_projector": {"base": base}}}


def run_deit(config, arrays):
    model, variables = student_of(config, arrays)
    logits, out = jax.jit(model.apply)(variables, to_nhwc(arrays["in/x"]))
    names = {"cls": "class_token", "dist": "distillation_token", "patches": "patch_tokens", "patch_embed": "patches"}
    names |= {"logits_cls": "logits_class", "logits_dist": "logits_distilled"}
    return {"out/logits": logits} | {f"out/{theirs}": out[ours] for theirs, ours in names.items()}


def run_regnet(config, arrays):
    numbers = {key: config[key] for key in ("w0", "wa", "wm", "depth", "se_ratio")}
    size = config["image"][-1]
    options = {**defaults(regnet.OPTIONS), **numbers, "group_width": config["group_size"], "image_size": size}
    model = regnet.build(ConfigDict(options), config["num_classes"])
    stages = list(zip(config["stage_widths"], config["stage_depths"], strict=True))
    assert regnet.compute_stages(ConfigDict(options)) == stages
    x = to_nhwc(arrays["in/x"])
    variables = from_torch(arrays, jax.eval_shape(model.init, jax.random.key(0), x), regnet.torch_name)
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == config["param_count"]
    logits, out = jax.jit(model.apply)(variables, x)
    maps = {f"out/{name}": out[name].transpose(0, 3, 1, 2) for name in ("stem", *(f"stage{i}" for i in range(1, 5)))}
    return {"out/logits": logits, "out/pooled": out["features"], **maps}


def to_nhwc(array):
    return array.transpose(0, 2, 3, 1)


def student_of(config, arrays):
    """(module, variables) of a distilled Transformer with a convolutional stem."""
    options = {"dim": config["embed_dim"], "depth": config["depth"], "heads": config["heads"]}
    options |= {"image_size": config["image"], "stem_width": config["stem_width"]}
    options = defaults(deit.OPTIONS, **options, mlp_ratio=float(config.get("mlp_ratio", 4)))
    model = deit.build(ConfigDict(options), config["num_classes"])
    shapes = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, config["image"], config["image"], 3)))
    return model, from_torch(arrays, shapes, deit.torch_name)


def from_torch(arrays, shapes, torch_name):
    """Variables of `shapes` from the arrays of a case, by the loader of weight files."""
    state = {name.removeprefix("param/"): array for name, array in arrays.items() if name.startswith("param/")}
    state = {name: array for name, array in state.items() if not name.startswith("projector.")}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.npz"
        np.savez(path, **state)
        return pretrained.load_network(path, shapes, torch_name)


def run_mixing(config, arrays):
    x, drawn, size = to_nhwc(arrays["in/x"]), jnp.float32(config["lambda"]), config["image"]
    targets = mixing.soft_labels(arrays["in/labels"], jnp.ones(config["classes"], bool), config["smoothing"])
    weight, box = drawn, arrays["out/cutmix_box_y0y1x0x1"]
    if config["cutmix"]:
        # The center is not stored: any center that gives their box will do.
        rows, columns = np.divmod(np.arange(size * size), size)
        box_at = jax.jit(jax.vmap(lambda *center: mixing.cutmix_box(drawn, center, size, size)))
        boxes = np.stack(box_at(rows, columns), axis=1)
        box = boxes[np.abs(boxes - box).sum(axis=1).argmin()]
        mixed, weight = mixing.cutmix_images(x, box), mixing.kept_area(box, size, size)
    else:
        mixed = mixing.mixup(x, weight)
    soft = mixing.mixup(targets, weight)
    loss, gradient = jax.value_and_grad(losses.soft_cross_entropy)(jnp.asarray(arrays["in/logits"]), soft)
    return {
        "out/cutmix_box_y0y1x0x1": box,
        "out/lambda_effective": weight,
        "out/mixed_x": mixed.transpose(0, 3, 1, 2),
        "out/soft_targets": soft,
        "out/loss": loss,
        "grad/logits": gradient,
    }


def run_schedule(config, arrays):
    """Their step i has the rate that is meant for the step before it."""
    steps = config["steps_per_epoch"] * config["epochs"]
    options = {"learning_rate": config["base_lr"], "end_learning_rate": config["min_lr"], "schedule": "cosine"}
    rate = optim.schedule(ConfigDict(defaults(optim.OPTIONS, **options)), config["epochs"])
    rates = jax.jit(jax.vmap(rate))(np.float32(np.arange(steps + 1) / config["steps_per_epoch"]))
    rates = np.asarray(rates).tolist()
    return {"out/lr_function_of_t": rates, "out/lr_used_at_iteration": [rates[max(i - 1, 0)] for i in range(steps)]}


def run_train_step(config, arrays):
    """Runs a step of AdamW on the loss of the method.

    The teacher's feature map and logits are given.
    """
    student, network = student_of(config, arrays)
    options = loss_options(config, config["projector_map"])
    options.teacher_feature = "map"
    teacher_out = {"logits": jnp.asarray(arrays["in/teacher_logits"]), "map": to_nhwc(arrays["in/teacher_feature_map"])}
    common = {"depth": 0, "tokens": 0, "num_classes": config["num_classes"], "num_tasks": 1, "head": 0, "learner": 0}
    teacher_spec = NetworkSpec(dim=0, outputs={"map": teacher_out["map"].shape}, **common)
    scheme = vkd.build(options, teacher_spec, NetworkSpec(dim=config["embed_dim"], **common))
    decay = {name: config[name] for name in ("betas", "eps", "weight_decay")}
    decay |= {
        "clip_norm": config.get("clip_grad") or 0.0,
        "name": "adamw",
        "learning_rate": config["lr"],
        "no_decay": ("pos_embed", "cls_token"),
    }
    optimizer = optim.build(ConfigDict(defaults(optim.OPTIONS, **decay)), 1)
    method = vkd_method.VkD(
        student=student, teacher=None, scheme=scheme, options=ConfigDict(defaults(vkd_method.OPTIONS)), mixing=None,
        info=StreamInfo(config["num_classes"], (config["num_classes"],)), image_size=config["image"],
        weights="", torch_name=None, epochs=1, optimizer=optimizer,
    )  # fmt: skip
    raw = f"param/{RAW}.original"
    variables = {"student": network, "distill": projector_variables(arrays[raw], arrays[f"param/{RAW}.0.base"])}
    zero = jnp.int32(0)
    everything = losses.Context(zero, zero, zero + config["num_classes"], zero, zero, zero, jax.random.key(0))
    x = to_nhwc(arrays["in/x"])
    (update,) = method.phases[0].updates
    trained, rest = split(jax.tree.map(jnp.asarray, variables), update.trainable)

    @jax.jit
    def step(trained):
        def loss(trained):
            now = join(rest, trained)
            return method.loss_for_targets(now, x, arrays["in/soft_targets"], teacher_out, everything, everything.key)

        (_, outcome), gradients = jax.value_and_grad(loss, has_aux=True)(trained)
        direction, _ = optimizer.transform.update(gradients, optimizer.transform.init(trained), trained)
        stepped = jax.tree.map(lambda p, d: p - optimizer.learning_rate(0.0) * d, trained, direction)
        (_, out), _ = apply(student, join(rest, trained)["student"], x, True, everything.key)
        return outcome, gradients, join(rest, stepped, outcome.variables), out

    outcome, gradients, after, out = step(trained)
    pooled, teacher = vkd.feature_vector(out, options.student_feature), vkd.feature_vector(teacher_out, "map")
    projector = projector_of(options, teacher.shape[1])
    terms = {"cross_entropy": "cross_entropy", "kl": "kd", "feature": "feature", "total": "loss"}
    return {
        **{f"out/loss_{theirs}": outcome.metrics[ours] for theirs, ours in terms.items()},
        "out/logits_cls": out["logits_class"],
        "out/logits_dist": out["logits_distilled"],
        "out/pooled_student": pooled,
        "out/projector_weight": projector.apply(variables["distill"], jnp.eye(pooled.shape[1])).T,
        "out/projected_student": projector.apply(variables["distill"], pooled),
        "out/pooled_teacher": teacher,
        "out/normalised_teacher": feature_norms.normalize(teacher, options.teacher_norm),
        **{f"grad/{name}": value for name, value in to_torch(gradients).items()},
        **{f"out/after_step/{name}": value for name, value in to_torch(after).items()},
    }


RAW = "projector.parametrizations.weight"


def to_torch(variables):
    """Leaves of student and projector under the program's names and in its layouts."""
    ends = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    state = {f"{RAW}.original": variables["distill"]["params"]["decayed_projector"]["raw"]}
    for (_, *modules, leaf), array in flatten_dict(jax.device_get(variables["student"])).items():
        if leaf == "kernel":
            array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        name = deit.torch_name("/".join(modules))
        state[f"{name}.{ends.get(leaf, leaf)}" if modules else leaf] = array
    return state


RUNNERS = {
    "vkd_cls_train_step": run_train_step,
    "mixup_soft_ce": run_mixing,
    "cutmix_soft_ce": run_mixing,
    "lr_cosine_cls": run_schedule,
    "deit_distilled": run_deit,
    "regnetx": run_regnet,
    "regnety": run_regnet,
    "vkd_cls_loss": run_losses,
    "orth": run_orthogonal,
    "orth_init": run_orthogonal_init,
    "orth_householder_weight_decay_collapse": run_collapse,
    "projector_skew_expm": run_skew_expm,
    "whitening": run_whitening,
}
