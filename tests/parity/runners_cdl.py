"""Runners of the CDL fixtures that do not train.

The runners compute forward passes, losses, prompt pools, metrics and orders.

A runner maps (config, arrays) to {"out/..." or "grad/...": array}.
"""

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax import losses, optim
from cdl_jax.data import class_order
from cdl_jax.distill import dkd
from cdl_jax.evaluation import metrics
from cdl_jax.models import vit
from cdl_jax.models.learners import apt, coda
from cdl_jax.models.modules import prompt_mapping
from cdl_jax.models.vit import Prompt
from tests.parity import steps_cdl
from tests.parity.compiled import compiled
from tests.parity.programs_cdl import backbone, build, context, load, to_nhwc


def run_vit(config, arrays):
    model = vit.ViT(
        dim=config["embed_dim"], depth=config["depth"], heads=config["heads"], mlp_ratio=config["mlp_ratio"],
        patch_size=config["patch"], image_size=config["img"],
    )  # fmt: skip
    images = to_nhwc(arrays["in/images"])
    template = jax.eval_shape(model.init, jax.random.key(0), images)["params"]
    params = backbone(arrays, "param/", template)
    query, out = jax.jit(model.apply)({"params": params}, images)
    ours = {"out/tokens_after_norm": out["tokens"], "out/query_cls": query, "out/patch_embed": out["patches"]}
    return ours | {f"out/block_{i}": out[f"block_{i}/tokens"] for i in range(config["depth"])}


def run_forward(config, arrays):
    method, fresh = build(config, arrays)
    images = to_nhwc(arrays["in/images"])
    variables = {name: load(arrays, f"param/{name}/", fresh[name]) for name in ("teacher", "student")}
    query = jax.jit(method.models.student.query)(variables["student"], images)
    ours = {"out/teacher/query": query, "out/student/query": query}
    for name in variables:
        forward = jax.jit(method.models.trained[name].__call__, static_argnums=4)
        for task in config["tasks"]:
            for train in (True, False):
                where = f"out/{name}/task{task}_{'train' if train else 'eval'}/"
                out = forward(variables[name], images, query, context(config, task), train)
                ours |= {where + "tokens_after_norm": out["tokens"], where + "logits": out["logits"]}
                ours[where + "prompt_loss"] = out["prompts"].loss
                for layer, prompt in out["prompts"].prompts.items():
                    pair = prompt.prefix or prompt.additive
                    ours[f"{where}layer{layer}_k"], ours[f"{where}layer{layer}_v"] = pair
    return ours


def run_teacher_prompts(config, arrays):
    """Computes the teacher's prompts at test time.

    The sources are the teacher's pool and the student's backbone alone.
    """
    method, fresh = build(config, arrays)
    pool = {}
    for leaf, old in fresh["teacher"]["prompts"].items():
        kind, layer = leaf.rsplit("_", 1)
        name = {"prompts": "e_p", "keys": "e_k", "attention": "e_a", "general": "g_p"}[kind]
        pool[leaf] = jnp.asarray(arrays[f"param/prompt.{name}_{layer}"])
        assert pool[leaf].shape == old.shape
    student = {"backbone": backbone(arrays, "param/s_feat.", fresh["student"]["backbone"])}
    query = jax.jit(method.models.student.query)(student, to_nhwc(arrays["in/images"]))
    place = context(config, config["task"])
    chosen = jax.jit(lambda q: method.models.teacher.learner.apply({"params": pool}, q, place, False).prompts)(query)
    return {f"out/layer{i}_{x}": half for i, p in chosen.items() for x, half in zip("kv", p.prefix, strict=True)}


@compiled
def run_gram_schmidt(config, arrays):
    pools = {"keys": "key", "prompts": "prompt"}
    rows = {ours: jnp.asarray(arrays[f"in/{name}"]) for ours, name in pools.items()}
    normal = {ours: jnp.asarray(arrays[f"in/{name}_normal_draws"]) for ours, name in pools.items()}
    new_rows = coda.reinit_rows(rows, normal, config["rows_new"][0])
    return {f"out/{name}": new_rows[ours] for ours, name in pools.items()}


@compiled
def run_apt_merge(config, arrays):
    ours, merged = {}, jnp.zeros_like(arrays["in/prompt_end_of_task0"])
    rows, dim = merged.shape
    pool = apt.APT(config["ema_coeff"], "live", dim, rows // 2)
    for task in range(len(arrays) // 2):
        live = jnp.asarray(arrays[f"in/prompt_end_of_task{task}"])
        place = context({"classes_per_task": 1}, task)
        merged = pool.end_task({"params": {"prompts": live}, "state": {"merged": merged}}, place)["state"]["merged"]
        ours[f"out/global_after_task{task}"] = merged
    return ours


@compiled
def run_mapping(config, arrays):
    """CDL-Prompt's mapping alone, each layer with its own style of teacher prompts."""
    styles = {
        f"{layer}_{style['style']}": int(layer.removeprefix("layer")) for layer, style in config["styles"].items()
    }
    count, per_task = max(styles.values()) + 1, config["pool"] // config["n_tasks"]
    module = prompt_mapping.PoolMapping(
        count, config["pool"], per_task, config["length"], config["student_dim"], config["teacher_dim"]
    )
    kinds = {"prompts": "e_p", "keys": "e_k", "attention": "e_a"}
    params = {
        f"{kind}_{layer}": jnp.asarray(arrays[f"param/project_fc_layers.{name}_{layer}"])
        for kind, name in kinds.items()
        for layer in styles.values()
    }
    ours, teacher = {}, {}
    for case, layer in styles.items():
        prompt = Prompt(prefix=tuple(jnp.asarray(arrays[f"in/{case}/teacher_{x}"]) for x in "kv"))
        teacher[case.split("_", 1)[1]] = prompt
        ours[f"out/{case}/query"] = prompt_mapping.mean_vector(prompt)
        weights = tuple(jnp.asarray(arrays[f"in/{case}/cotangent_{x}"]) for x in "kv")
        for counter in (0, 1):

            def mapped(params, train, counter=counter, layer=layer, prompt=prompt):
                return module.apply({"params": params}, {layer: prompt}, counter, train)[layer].prefix

            def projected(params, mapped=mapped, weights=weights):
                return sum((w * x).sum() for w, x in zip(weights, mapped(params, True), strict=True))

            where = f"counter{counter}/{case}/"
            forward = jax.jit(mapped, static_argnums=1)
            ours[f"out/{where}mapped_k"], ours[f"out/{where}mapped_v"] = forward(params, True)
            ours[f"out/{where}eval_mapped_k"], ours[f"out/{where}eval_mapped_v"] = forward(params, False)
            gradients = jax.jit(jax.grad(projected))(params)
            ours |= {f"grad/{where}{name}_{layer}": gradients[f"{kind}_{layer}"] for kind, name in kinds.items()}
    for name in kinds.values():
        normal = jnp.asarray(arrays[f"in/init_normal_draws/{name}_0"])
        zeros = jnp.zeros_like(arrays[f"out/init/{name}_0"])
        ours[f"out/init/{name}_0"] = coda.orthogonal_rows(zeros, normal, 0)
    return ours | _unused_mapping(config, arrays, teacher)


def _unused_mapping(config, arrays, teacher):
    prefix = "param/unused_variant.attention_layers."
    params = {}
    for name, array in arrays.items():
        if name.startswith(prefix):
            _, module, leaf = name.removeprefix(prefix).split(".")
            array = jnp.asarray(array)
            params.setdefault(f"{module}_0", {})["kernel" if leaf == "weight" else "bias"] = array.T
    module = prompt_mapping.SelfAttentionMapping(1, config["student_dim"], config["teacher_dim"])
    ours = {}
    for style, prompt in teacher.items():
        key, value = module.apply({"params": params}, {0: prompt}, 0, True)[0].prefix
        ours |= {f"out/unused_variant/{style}_k": key, f"out/unused_variant/{style}_v": value}
    return ours


@compiled
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
            target, other = dkd.tckd_and_nckd(logits, teacher, labels, everything, weights["T"])
            return weights["alpha"] * target + weights["beta"] * other

        name = f"dkd_a{weights['alpha']}_b{weights['beta']}_T{weights['T']}"
        ours[f"out/{name}"], ours[f"out/grad_{name}"] = jax.value_and_grad(decoupled)(student)
        target, other = dkd.tckd_and_nckd(student, teacher, labels, everything, weights["T"])
        ours |= {f"out/tckd_T{weights['T']}": target, f"out/nckd_T{weights['T']}": other}
    return ours


@compiled
def run_schedule(config, arrays):
    ours = {}
    for name in arrays:
        epochs = int(name.removeprefix("out/lr_K"))
        rate = optim.cdl_cosine(config["base_lr"], epochs)
        ours[name] = jax.vmap(rate)(jnp.arange(epochs, dtype=jnp.float32))
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
            "python_shuffle": lambda n, s: class_order.order_classes(n, "python_shuffle", s),
            "validation_permutation": class_order.validation_permutation,
        }[kind]
        ours[name] = make(count, seed)
    return ours


RUNNERS = {
    "vit_plain_forward": run_vit,
    "fwd": run_forward,
    "loss_kd_dkd": run_losses,
    "lr_schedule": run_schedule,
    "metrics": run_metrics,
    "class_order": run_class_order,
    "cdlprompt_teacher_prompts": run_teacher_prompts,
    "coda_gram_schmidt": run_gram_schmidt,
    "apt_merge": run_apt_merge,
    "v1_mapping": run_mapping,
    **steps_cdl.RUNNERS,
}
