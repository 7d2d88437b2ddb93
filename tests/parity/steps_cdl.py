"""Runners of CDL fixtures that train: single steps, and protocols of two tasks."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.methods.base import join, split
from cdl_jax.models.learners import coda
from cdl_jax.models.learners.base import Selection
from cdl_jax.models.vit import Prompt
from tests.parity.programs_cdl import backbone, build, context, load, to_nhwc, to_torch


# Without the fusion pass: at the widths of the fixtures (12) it takes minutes over ReviewKD on a CPU.
@partial(jax.jit, static_argnums=0, compiler_options={"xla_disable_hlo_passes": "fusion"})
def train(update, variables, opt, batch, place):
    """Runs one step of an update.

    The step returns (variables, optimizer state), (loss, Outcome, gradients, learning rate).
    """
    trained, rest = split(variables, update.trainable)

    def objective(trained):
        return update.loss(join(rest, trained), batch, place)

    (total, outcome), gradients = jax.value_and_grad(objective, has_aux=True)(trained)
    direction, opt = update.optimizer.transform.update(gradients, opt, trained)
    rate = update.optimizer.learning_rate(place.progress)
    trained = jax.tree.map(lambda p, d: p - rate * d, trained, direction)
    return (join(rest, trained, outcome.variables), opt), (total, outcome, gradients, rate)


def start(update, variables):
    return jax.jit(update.optimizer.transform.init)(split(variables, update.trainable)[0])


def student_out(method, variables, images, teacher, place, train):
    """Returns the student's prompts from the scheme, and logits.

    The logits are those of the classes, the mean of both heads, and those at test time.
    """
    inputs = method.models.scheme.student_inputs(variables["distill"], teacher, len(images), place, train)
    query = method.models.student.query(variables["student"], images)
    out = method.models.student(variables["student"], images, query, place, train, inputs=inputs)
    (mixed,) = method.models.scheme.predict_with_weights(variables["distill"], out, (0.5,))
    return inputs.prompts, out["logits"], mixed, method.models.scheme.predict(variables["distill"], out)


def prompts(arrays, prefix):
    """The `Selection` of the teacher prompts stored below `prefix`."""
    layers = {int(name.removeprefix(prefix + "layer").split("_")[0]) for name in arrays if name.startswith(prefix)}
    chosen = {i: Prompt(prefix=tuple(jnp.asarray(arrays[f"{prefix}layer{i}_{x}"]) for x in "kv")) for i in layers}
    return Selection(chosen, jnp.zeros(()), {})


def teacher_outputs(config, arrays, ending, classes):
    """Returns the teacher outputs that a case stores, as our networks output them."""
    columns = slice(config["last_valid"], config["valid"])
    logits = arrays["in/teacher_logits_current" + ending]
    teacher = {"logits": np.zeros((len(logits), classes), np.float32)}
    teacher["logits"][:, columns] = logits
    depth = config["teacher_dims"][1]
    if "in/teacher_last_block" in arrays:
        teacher[f"block_{depth - 1}/tokens"] = jnp.asarray(arrays["in/teacher_last_block" + ending])
    if "in/teacher_blocks" in arrays:  # the last ones
        blocks = arrays["in/teacher_blocks" + ending]
        teacher |= {f"block_{depth - len(blocks) + i}/tokens": jnp.asarray(block) for i, block in enumerate(blocks)}
    if any(name.startswith("in/teacher_prompts/") for name in arrays):
        teacher["prompts"] = prompts(arrays, f"in/teacher_prompts{ending}/")
    return teacher


def steps_of(arrays):
    """(number, ending of the arrays' names) of each step of a case."""
    steps = [(1, "")]
    while f"in/images_{len(steps) + 1}" in arrays:
        steps.append((len(steps) + 1, f"_{len(steps) + 1}"))
    return steps


def unused(arrays):
    """Returns the norm2 of the deepest ReviewKD level.

    No computation of the program reads these parameters, so that our networks have no such parameters.
    """
    start = "param/ReviewKD_layers.abfs.0.norm2."
    return {name.removeprefix("param/"): array for name, array in arrays.items() if name.startswith(start)}


def run_student_step(config, arrays):
    method, fresh = build(config, arrays)
    deit = "param/feat.add_T_token" in arrays
    student, distill = load(arrays, "param/", fresh["student"], fresh["distill"])
    live = {"student": student, "distill": distill}
    place = context(config, config["task"])
    update = method.phases[-1].updates[-1]
    opt, ours = start(update, live), {}
    forward = jax.jit(partial(student_out, method), static_argnums=4)
    for step, ending in steps_of(arrays):
        batch = {"images": to_nhwc(arrays["in/images" + ending]), "labels": arrays["in/labels" + ending]}
        teacher = teacher_outputs(config, arrays, ending, method.info.num_classes)
        where = f"out/step{step}/"
        given, logits, mixed, _ = forward(live, batch["images"], teacher, place, True)
        ours |= {where + "logits": logits, where + "kd_logits": 2 * mixed - logits}
        for layer, prompt in given.items():
            if prompt.prefix is not None:
                ours[f"{where}mapped/layer{layer}_k"], ours[f"{where}mapped/layer{layer}_v"] = prompt.prefix
        (live, opt), (total, outcome, gradients, _) = train(update, live, opt, {**batch, "teacher": teacher}, place)
        terms = outcome.metrics
        ours |= {
            where + "ce": terms["cross_entropy"],
            where + "total_loss": total,
            where + "prompt_loss": terms["pool"],
        }
        ours |= {
            where + "soft_loss": terms.get("kd", terms.get("dkd")),
            where + "feature_loss": terms.get("feature", 0),
        }
        ours[where + "token_correlation_loss"] = 0.0  # the program computes it, sets it to zero and adds it nowhere
        if step == 1:
            flat = to_torch(gradients["student"], gradients["distill"], deit)
            ours |= {f"grad/{name}": value for name, value in flat.items()}
            ours |= {f"grad/{name}": np.zeros_like(value) for name, value in unused(arrays).items()}
        flat = {**to_torch(live["student"], live["distill"], deit), **unused(arrays)}
        ours |= {f"{where}param_after/{name}": value for name, value in flat.items()}
    teacher = {"prompts": prompts(arrays, "in/teacher_prompts_eval/")}
    ours[f"out/eval_logits_after_step{step}"] = forward(live, to_nhwc(arrays["in/images"]), teacher, place, False)[3]
    return ours


def run_teacher_step(config, arrays):
    method, fresh = build(config, arrays)
    query = {"backbone": backbone(arrays, "param/s_feat.", fresh["student"]["backbone"])}
    live = {"teacher": load(arrays, "param/", fresh["teacher"]), "student": query}
    forward = jax.jit(method.models.teacher.__call__, static_argnums=4)
    place = context(config, config["task"])
    update = method.phases[0].updates[0]
    opt, ours = start(update, live), {}
    for step, ending in steps_of(arrays):
        batch = {"images": to_nhwc(arrays["in/images" + ending]), "labels": arrays["in/labels" + ending]}
        where = f"out/step{step}/"
        query = jax.jit(method.models.student.query)(live["student"], batch["images"])
        ours[where + "logits"] = forward(live["teacher"], batch["images"], query, place, True)["logits"]
        (live, opt), (total, outcome, gradients, _) = train(update, live, opt, batch, place)
        ours |= {where + "total_loss": total, where + "prompt_loss": outcome.metrics["pool"]}
        if step == 1:
            ours |= {f"grad/{name}": value for name, value in to_torch(gradients["teacher"]).items()}
        ours |= {f"{where}param_after/{name}": value for name, value in to_torch(live["teacher"]).items()}
    return ours


def begin(method, variables, arrays, place, task):
    """`start_task`, with the stored draws where new rows are drawn."""
    where = f"in/task{task}/normal_draws/"
    if not any(name.startswith(where) for name in arrays):
        return jax.jit(method.start_task)(variables, place) if task else variables
    new = dict(variables)
    for name in method.networks:
        pool, old = method.models.trained[name].learner, variables[name]["prompts"]
        normal = {}
        for leaf in old:
            kind, layer = leaf.rsplit("_", 1)
            torch = {"prompts": "e_p", "keys": "e_k", "attention": "e_a"}[kind]
            normal[leaf] = jnp.asarray(arrays[f"{where}{name}/prompt.{torch}_{layer}"])
        new_rows = jax.jit(coda.reinit_rows, static_argnums=2)(old, normal, task * pool.rows_per_task)
        new[name] = {**variables[name], "prompts": new_rows}
    return new


def run_protocol(config, arrays):
    """All tasks of a case, by the method's own phases, whatever these are."""
    method, fresh = build(config, arrays)
    student, distill = load(arrays, "param/student/", fresh["student"], fresh["distill"])
    live = {"teacher": load(arrays, "param/teacher/", fresh["teacher"]), "student": student, "distill": distill}
    size, ours, seen = config["batch_size"], {}, []
    phases, predict = method.phases, jax.jit(method.predict)
    tasks = sum(name.startswith("in/task") and name.endswith("/images") for name in arrays)
    for task in range(tasks):
        live = begin(method, live, arrays, context(config, task), task)
        images, labels = to_nhwc(arrays[f"in/task{task}/images"]), arrays[f"in/task{task}/labels"]
        totals, soft, rates = {"teacher": [], "student": []}, [], {"teacher": [], "student": []}
        for phase in phases:
            opt = [start(update, live) for update in phase.updates]
            for epoch in range(phase.epochs):
                place = context(config, task, epoch)
                for first in range(0, len(labels), size):
                    batch = {"images": images[first : first + size], "labels": labels[first : first + size]}
                    before = live
                    for i, update in enumerate(phase.updates):
                        (live, opt[i]), (total, outcome, _, rate) = train(update, live, opt[i], batch, place)
                        batch |= outcome.batch
                        trains_teacher = update.trainable(("teacher", "head"))
                        who = "teacher" if trains_teacher else "student"
                        totals[who].append(total)
                        rates[who].append(rate)
                        if not trains_teacher:
                            soft.append(outcome.metrics["dkd" if "dkd" in outcome.metrics else "kd"])
                    assert jax.tree.structure(before) == jax.tree.structure(live)
        live = jax.jit(method.end_task)(live, context(config, task))
        seen.append(images)
        where = f"out/task{task}/"
        logits = [predict(live, images, context(config, task))[0] for images in seen]
        logits = {name: np.concatenate([part[name] for part in logits]) for name in method.networks}
        ours |= {
            where + "teacher_losses": totals["teacher"],
            where + "student_total_and_soft_losses": np.stack([totals["student"], soft], axis=1),
            where + "teacher_eval_logits": logits["teacher"],
            where + "student_eval_logits": logits["student"],
        }
        if len(rates["teacher"]) == len(rates["student"]):
            ours[where + "lr_teacher_student"] = np.stack([rates["teacher"], rates["student"]], axis=1)
        for name, tree in (
            ("teacher", to_torch(live["teacher"])),
            ("student", to_torch(live["student"], live["distill"])),
        ):
            ours |= {f"{where}{name}/{leaf}": value for leaf, value in tree.items()}
    return ours


RUNNERS = {
    "student_step": run_student_step,
    "v1_student_step": run_student_step,
    "teacher_step": run_teacher_step,
    "protocol_two_tasks": run_protocol,
    "v1": run_protocol,
}
