"""Runners of the DKT fixtures that train: two steps with a teacher, two learners in turns, three at the same time.

Adam makes a whole step of what rounding leaves of a gradient near zero, so that its steps are replayed in float64, as
they were computed.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cdl_jax.methods import dkt_losses
from cdl_jax.models.cnn import apply
from cdl_jax.models.two_heads import TwoHeads
from tests.parity.programs_dkt import build, load, part_of, to_torch
from tests.parity.programs_okddip import images

_CALLS = 4  # of the teacher on each batch of the program, each of which moves its running statistics
_KEY = jax.random.key(0)


def terms(config, cl, st, teacher_logits, labels):
    """The named losses of a batch."""
    kind, temperature = config.get("st_loss") or config["loss"], config.get("T", 1)
    reduction = config.get("reduction", "mean")
    target = dkt_losses.student_target(jnp.asarray(teacher_logits), kind, temperature)
    true = dkt_losses.class_term(cl, jnp.asarray(labels), reduction)
    taught = dkt_losses.student_term(st, target, kind, temperature, reduction)
    return {"cl_loss": true, "st_loss": taught, "total_loss": true + config["kd_rel"] * taught}


def _optimizer(config):
    clip = optax.clip_by_global_norm(config["clip_global_norm"])
    return clip, optax.adam(config["lr"], *config.get("betas", (0.9, 0.999)), config.get("eps", 1e-8))


@partial(jax.jit, static_argnums=0)
def _listen(module, variables, pictures):
    """(logits of a teacher in training mode, its variables with the running statistics that follow)."""
    (logits, _), stats = apply(module, variables, pictures, True, _KEY)
    return logits[0] if isinstance(logits, tuple) else logits, {**variables, **stats}


def _trainer(config, module):
    """A compiled step: (variables, optimizer state), (what is told of it, clipped gradients)."""
    clip, adam = _optimizer(config)

    def loss(params, variables, pictures, labels, taught):
        ((cl, st), _), stats = apply(module, {**variables, "params": params}, pictures, True, _KEY)
        named = terms(config, cl, st, taught, labels)
        return named["total_loss"], ({"cl_logits": cl, "st_logits": st, **named}, stats)

    @jax.jit
    def step(variables, opt, pictures, labels, taught):
        params = variables["params"]
        gradients, (told, stats) = jax.grad(loss, has_aux=True)(params, variables, pictures, labels, taught)
        told["grad_norm_before_clip"] = optax.tree.norm(gradients)
        gradients, _ = clip.update(gradients, clip.init(params))
        direction, opt = adam.update(gradients, opt, params)
        params = optax.apply_updates(params, direction)
        return ({**variables, **stats, "params": params}, opt), ({**told, "teacher_logits": taught}, gradients)

    return adam, step


def _batches(arrays, start):
    count = sum(name.startswith(start + "step") and name.endswith("/x") for name in arrays)
    where = [f"{start}step{i}/" for i in range(count)]
    return [(images(arrays[at + "x"].astype(np.float64)), jnp.asarray(arrays[at + "labels"])) for at in where]


def _taught(teacher, theirs, pictures):
    """The logits of a teacher, and its variables after all calls of the program."""
    for _ in range(_CALLS):
        logits, theirs = _listen(teacher, theirs, pictures)
    return logits, theirs


@jax.enable_x64(True)
def run_taught(config, arrays):
    """Two steps with a frozen teacher of one head."""
    own, of_teacher = part_of(arrays, "param/student/"), part_of(arrays, "param/teacher/")
    module = build(config["student"], config["num_classes"], own)
    teacher = build(config["teacher"], config["num_classes"], of_teacher)
    live, theirs = load(module, own, jnp.float64), load(teacher, of_teacher, jnp.float64)
    adam, step = _trainer(config, module)
    opt, ours = adam.init(live["params"]), {}
    for number, (pictures, labels) in enumerate(_batches(arrays, "in/")):
        logits, theirs = _taught(teacher, theirs, pictures)
        (live, opt), (told, gradients) = step(live, opt, pictures, labels, logits)
        ours |= {f"out/step{number}/{name}": value for name, value in told.items()}
        if number == 0:
            ours |= {f"grad/{name}": value for name, value in to_torch({"params": gradients}, own).items()}
    ours |= {f"out/params_after_step{number}/{name}": value for name, value in to_torch(live, own).items()}
    stats = {"batch_stats": theirs["batch_stats"]}
    return ours | {f"out/teacher_buffers_after/{name}": value for name, value in to_torch(stats, of_teacher).items()}


@jax.enable_x64(True)
def run_peers(config, arrays):
    """Two learners in turns, each the other's teacher; the statistics of whoever teaches move as in the program."""
    state = part_of(arrays, "param/")
    module = build(config, config["num_classes"], state)
    live = {name: load(module, state, jnp.float64) for name in "AB"}
    adam, step = _trainer(config, module)
    ours = {}
    for task in range(len(config["experiences_A"])):
        for name, peer in ("AB", "BA"):
            opt = adam.init(live[name]["params"])
            for number, (pictures, labels) in enumerate(_batches(arrays, f"in/{name}/exp{task}/")):
                logits, live[peer] = _taught(module, live[peer], pictures)
                (live[name], opt), (told, _) = step(live[name], opt, pictures, labels, logits)
                ours |= {f"out/{name}/exp{task}/step{number}/{key}": value for key, value in told.items()}
    for name, variables in live.items():
        ours |= {f"out/{name}/params_after/{key}": value for key, value in to_torch(variables, state).items()}
    return ours


class _Perceptron(nn.Module):
    """One hidden layer and a classifier, in place of a convolutional network."""

    hidden: int
    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        features = nn.relu(nn.Dense(self.hidden, name="first")(x))
        return nn.Dense(self.num_classes, name="classifier")(features), {"features": features}


# The fixtures' names of our layers.
_LAYERS = {"backbone/first": ("w1", "b1"), "backbone/classifier": ("cl.w", "cl.b"), "student": ("st.w", "st.b")}


def run_simultaneous(config, arrays):
    """Learners that train at the same time, each after the published snapshots of the others, plain gradient steps."""
    module = TwoHeads(_Perceptron(config["hidden"], config["num_classes"]), config["num_classes"])
    each = [part_of(arrays, f"param/learner{i}/") for i in range(config["n_learners"])]
    stacked = {name: jnp.stack([state[name] for state in each]) for name in each[0]}
    own = {at: {"kernel": stacked[w].transpose(0, 2, 1), "bias": stacked[b]} for at, (w, b) in _LAYERS.items()}
    params = {"backbone": {at.split("/")[1]: own[at] for at in own if "/" in at}, "student": own["student"]}
    mixing, optimizer = jnp.asarray(arrays["in/mixing_matrix"]), optax.sgd(config["lr"])
    kind, temperature = config["st_loss"], config["T"]

    def published(peer, x):
        (cl, _), _ = module.apply({"params": peer}, x)
        return dkt_losses.student_target(cl, kind, temperature)

    def loss(learner, x, labels, target):
        (cl, st), _ = module.apply({"params": learner}, x)
        true = dkt_losses.class_term(cl, labels)
        taught = dkt_losses.student_term(st, target, kind, temperature)
        total = true + config["kd_rel"] * taught
        return total, jnp.stack([true, taught, total])

    @jax.jit
    def step(params, snapshots, x, labels):
        of_each = jax.vmap(lambda batch: jax.vmap(published, in_axes=(0, None))(snapshots, batch))(x)
        targets = jnp.einsum("ij,ij...->i...", mixing, of_each)
        gradients, told = jax.vmap(jax.grad(loss, has_aux=True))(params, x, labels, targets)
        direction, _ = optimizer.update(gradients, optimizer.init(params))
        return optax.apply_updates(params, direction), told, targets

    losses, targets = [], []
    for number, (x, labels) in enumerate(zip(arrays["in/x"], arrays["in/labels"], strict=True)):
        if number % config["exchange_every_steps"] == 0:
            snapshots = params
        params, told, target = step(params, snapshots, x, labels)
        losses.append(told)
        targets.append(target)
    ours = {"out/losses_step_learner_cl_st_total": losses, "out/targets_step_learner": targets}
    flat = {**{f"backbone/{name}": leaf for name, leaf in params["backbone"].items()}, "student": params["student"]}
    for at, (w, b) in _LAYERS.items():
        for i in range(config["n_learners"]):
            ours[f"out/params_after/learner{i}/{w}"] = np.asarray(flat[at]["kernel"][i]).T
            ours[f"out/params_after/learner{i}/{b}"] = flat[at]["bias"][i]
    return ours
