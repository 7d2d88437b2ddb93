"""Runners of the CDL fixtures: each builds our model from a case's `config`, converts `param/`, and computes the rest.

A runner maps (config, arrays) to {"out/..." or "grad/...": array}, or to `Missing` where a learner or scheme is absent.
"""

import tempfile
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from cdl_jax import config as configs
from cdl_jax import losses, metrics, names, optim
from cdl_jax.data import stream
from cdl_jax.distill import dkd
from cdl_jax.methods import cdl
from cdl_jax.methods.base import StreamInfo
from cdl_jax.models import pretrained, vit


@dataclass
class Missing:
    what: str


LEARNERS = {"l2p": "l2p", "dual": "dualprompt", "dualprompt": "dualprompt", "coda": "coda", "apt": "apt"}
SCHEMES = {"KD": "kd", "DKD": "dkd"}


def learner_options(method, values):
    """Our options for the program's list of prompt parameters."""
    if method == "l2p":
        pool, length, deep = values
        return {"pool": int(pool), "length": int(length), "deep": deep > 0}
    return {}


def build(config, *, teacher_dims=None, student_dims, scheme="none", **cdl_options):
    """The method of a case, or `Missing`."""
    learner = LEARNERS[config["method"]]
    for folder, name in (("models.prompts", learner), ("distill", scheme)):
        if name not in names.available(folder):
            return Missing(f"{folder}.{name}")
    made = configs.default("cdl", data="glyph_mini", learner=learner, distill=scheme)
    made.learner.update(learner_options(config["method"], config["prompt_param"]))
    for section, dims in (("teacher", teacher_dims or student_dims), ("student", student_dims)):
        dim, depth, heads = dims
        made[section].update(
            dim=dim, depth=depth, heads=heads, patch_size=config.get("patch", 8), image_size=config.get("img", 32)
        )
    made.train.epochs = config.get("epochs", 20)
    made.optim.learning_rate = config.get("lr", 1e-3)
    made.cdl.update(cdl_options)
    if scheme in ("kd", "dkd"):
        made.distill.alpha = config.get("kd_alpha", 0.5)
    if scheme == "kd":
        made.distill.temperature = config.get("Soft_T", 2.0)
    return made, StreamInfo(
        config["n_tasks"] * config["classes_per_task"], (config["classes_per_task"],) * config["n_tasks"]
    )


def context(config, task):
    each = config["classes_per_task"]
    numbers = {"task": task, "first": task * each, "end": (task + 1) * each, "epoch": 0, "step": 0}
    arrays = {name: jnp.int32(value) for name, value in numbers.items()}
    return losses.Context(**arrays, progress=jnp.float32(0), key=jax.random.key(0))


def images(array):
    return jnp.asarray(array).transpose(0, 2, 3, 1)


def backbone(arrays, prefix, template):
    """Our backbone's parameters from the arrays below `prefix`, which have timm's names."""
    state = {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "weights.npz"
        np.savez(path, **{name: array for name, array in state.items() if name != "add_T_token"})
        return pretrained.load_vit(path, template)


def torch_names(variables):
    """{torch name: (path in a network's variables, transposed?)} of everything that is trained."""
    table = {}
    for path in flatten_dict(variables):
        if path[0] == "backbone":
            continue
        if path[0] == "head":
            table["last." + ("weight" if path[-1] == "kernel" else "bias")] = (path, path[-1] == "kernel")
        if path[0] == "prompts":
            kind, layer = path[-1].rsplit("_", 1)
            table[f"prompt.{ {'prompts': 'e_p', 'keys': 'e_k'}[kind] }_{layer}"] = (path, False)
    return table


def network(arrays, prefix, variables, query=None):
    """A network's variables with the arrays below `prefix` put in."""
    flat = flatten_dict({**variables, "backbone": backbone(arrays, prefix + "feat.", variables["backbone"])})
    for name, (path, transposed) in torch_names(variables).items():
        array = arrays[prefix + name]
        flat[path] = jnp.asarray(array.T if transposed else array)
        assert flat[path].shape == flatten_dict(variables)[path].shape, name
    return unflatten_dict(flat)


def to_torch(variables):
    """Trained leaves of a network (values, gradients, ...) under the program's names and in its layouts."""
    flat = flatten_dict(variables)
    table = torch_names(variables)
    return {name: np.asarray(flat[path].T if transposed else flat[path]) for name, (path, transposed) in table.items()}


def run_vit(config, arrays):
    model = vit.ViT(
        dim=config["embed_dim"], depth=config["depth"], heads=config["heads"], mlp_ratio=config["mlp_ratio"],
        patch_size=config["patch"], image_size=config["img"],
    )  # fmt: skip
    pictures = images(arrays["in/images"])
    template = jax.eval_shape(model.init, jax.random.key(0), pictures)["params"]
    params = backbone(arrays, "param/", template)
    query, out = model.apply({"params": params}, pictures)
    ours = {"out/tokens_after_norm": out["tokens"], "out/query_cls": query, "out/patch_embed": out["patches"]}
    return ours | {f"out/block_{i}": out[f"block_{i}/tokens"] for i in range(config["depth"])}


def run_forward(config, arrays):
    made = build(config, teacher_dims=config["teacher_dims"], student_dims=config["student_dims"], scheme="kd")
    if isinstance(made, Missing):
        return made
    method = cdl.build(*made)
    fresh = method.init(jax.random.key(0))
    pictures = images(arrays["in/images"])
    variables = {name: network(arrays, f"param/{name}/", fresh[name]) for name in ("teacher", "student")}
    query = method.student.query(variables["student"], pictures)
    ours = {"out/teacher/query": query, "out/student/query": query}
    for name in variables:
        for task in config["tasks"]:
            for train in (True, False):
                where = f"out/{name}/task{task}_{'train' if train else 'eval'}/"
                out = getattr(method, name)(variables[name], pictures, query, context(config, task), train)
                ours |= {where + "tokens_after_norm": out["tokens"], where + "logits": out["logits"]}
                ours[where + "prompt_loss"] = out["prompts"].loss
                for layer, prompt in out["prompts"].prompts.items():
                    ours[f"{where}layer{layer}_k"], ours[f"{where}layer{layer}_v"] = prompt.prefix
    return ours


def run_student_step(config, arrays):
    scheme = SCHEMES.get(config["KD_method"])
    if scheme is None:
        return Missing(f"scheme {config['KD_method']}")
    made = build(config, student_dims=config["student_dims"], teacher_dims=config["teacher_dims"], scheme=scheme)
    if isinstance(made, Missing):
        return made
    made, info = made
    if "legacy key loss" in " ".join(config["case_notes"]):
        made.learner.pull = "legacy_sum"
    method = cdl.build(made, info)
    fresh = method.init(jax.random.key(0))
    live = {"student": network(arrays, "param/", fresh["student"]), "distill": fresh["distill"]}
    place = context(config, config["task"])
    update = method.phases[1].updates[0]
    rate = update.optimizer.learning_rate(place.progress)
    opt, ours = None, {}
    for step in (1, 2):
        ending = "" if step == 1 else f"_{step}"
        batch = {"images": images(arrays["in/images" + ending]), "labels": jnp.asarray(arrays["in/labels" + ending])}
        teacher = {"logits": jnp.zeros((len(batch["labels"]), info.num_classes))}
        columns = slice(config["last_valid"], config["valid"])
        teacher["logits"] = teacher["logits"].at[:, columns].set(arrays["in/teacher_logits_current" + ending])
        query = method.student.query(live["student"], batch["images"])

        def objective(trained, live=live, batch=batch, teacher=teacher, query=query):
            variables = {**live, "student": {**live["student"], **trained}}
            return method.student_terms(variables, batch, query, teacher, place)

        trained = {part: live["student"][part] for part in ("prompts", "head")}
        (total, outcome), gradients = jax.value_and_grad(objective, has_aux=True)(trained)
        terms, where = outcome.metrics, f"out/step{step}/"
        ours |= {where + "ce": terms["cross_entropy"], where + "soft_loss": terms[scheme], where + "total_loss": total}
        ours |= {where + "prompt_loss": terms["pool"], where + "feature_loss": terms.get("feature", 0.0)}
        out = method.student(live["student"], batch["images"], query, place, True)
        ours[where + "logits"] = out["logits"]
        if step == 1:
            ours |= {"grad/" + name: value for name, value in to_torch(gradients).items()}
            opt = update.optimizer.transform.init(trained)
        direction, opt = update.optimizer.transform.update(gradients, opt, trained)
        trained = jax.tree.map(lambda p, d: p - rate * d, trained, direction)
        live["student"] = {**live["student"], **trained}
        ours |= {where + "param_after/" + name: value for name, value in to_torch(trained).items()}
    first = images(arrays["in/images"])
    out = method.student(live["student"], first, method.student.query(live["student"], first), place, False)
    ours["out/eval_logits_after_step2"] = method.scheme.predict(live["distill"], out)
    return ours


def run_losses(config, arrays):
    student, teacher = jnp.asarray(arrays["in/student_logits"]), jnp.asarray(arrays["in/teacher_logits"])
    labels, everything = jnp.asarray(arrays["in/labels"]), jnp.ones(config["classes"], bool)
    ours = {}

    def kd(logits):
        t = config["T"]
        return config["alpha"] * t**2 * losses.kl_divergence(logits, teacher, everything, t)

    ours["out/kd"], ours["out/grad_kd"] = jax.value_and_grad(kd)(student)
    for weights in config["dkd"]:

        def decoupled(logits, weights=weights):
            target, other = dkd.decoupled(logits, teacher, labels, everything, weights["T"])
            return weights["alpha"] * target + weights["beta"] * other

        name = f"dkd_a{weights['alpha']}_b{weights['beta']}_T{weights['T']}"
        ours[f"out/{name}"], ours[f"out/grad_{name}"] = jax.value_and_grad(decoupled)(student)
        target, other = dkd.decoupled(student, teacher, labels, everything, weights["T"])
        ours |= {f"out/tckd_T{weights['T']}": target, f"out/nckd_T{weights['T']}": other}
    return ours


def run_schedule(config, arrays):
    ours = {}
    for name in arrays:
        epochs = int(name.removeprefix("out/lr_K"))
        rate = optim.cdl_cosine(config["base_lr"], epochs)
        ours[name] = [rate(jnp.float32(epoch)) for epoch in range(epochs)]
    return ours


def run_metrics(config, arrays):
    def rows(matrix):
        return [row[: i + 1] for i, row in enumerate(matrix)]

    def running_means(matrix):
        return [round(float(np.mean(row)), 2) for row in rows(matrix)]

    student = arrays["in/student_accuracy_matrix"]
    values = [metrics.forgetting_coda(metrics.as_matrix(rows(m))) for m in arrays["in/two_run_matrices"]]
    predicted = arrays["in/logits"].argmax(axis=1)
    return {
        "out/final_average_accuracy": metrics.last(metrics.as_matrix(rows(student))),
        "out/forgetting": metrics.forgetting_cdl(metrics.as_matrix(rows(student))),
        "out/acc_s_csv": running_means(student),
        "out/acc_csv": running_means(arrays["in/teacher_accuracy_matrix"]),
        "out/calc_forgetting_mean": np.mean(values),
        "out/calc_forgetting_std": np.std(values),
        "out/task_accuracy_percent": 100 * np.mean(predicted == arrays["in/labels"]),
    }


def run_class_order(config, arrays):
    ours = {}
    for name in arrays:
        kind, count, seed = name.removeprefix("out/").rsplit("_", 2)
        count, seed = int(count[1:]), int(seed.removeprefix("seed"))
        make = {
            "python_shuffle": lambda n, s: stream.order_classes(n, "python_shuffle", s),
            "validation_permutation": stream.validation_permutation,
        }[kind]
        ours[name] = make(count, seed)
    return ours


RUNNERS = {
    "vit_plain_forward": run_vit,
    "fwd": run_forward,
    "student_step": run_student_step,
    "loss_kd_dkd": run_losses,
    "lr_schedule": run_schedule,
    "metrics": run_metrics,
    "class_order": run_class_order,
}
