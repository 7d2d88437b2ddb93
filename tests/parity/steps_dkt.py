"""Runners of the DKT fixtures that train.

The runners take two steps with a teacher, and train two learners in turns and three learners at the same time.

Adam makes a full step of what rounding leaves of a gradient near zero, so that its steps are replayed in float64, as
they were computed.
"""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax.traverse_util import flatten_dict, unflatten_dict

from cdl_jax import config as configs
from cdl_jax import optim
from cdl_jax.methods import dkt
from cdl_jax.methods.base import StreamInfo
from cdl_jax.methods.shared import dkt_learners, dkt_losses
from cdl_jax.models.modules.conv import apply
from cdl_jax.models.modules.two_heads import TwoHeads
from tests.parity.programs_dkt import build, load, part_of, to_torch
from tests.parity.programs_okddip import to_nhwc
from tests.support.contexts import context
from tests.support.manual_steps import train

_CALLS = 4  # of the teacher on each batch of the program, each of which moves its running statistics
_KEY = jax.random.key(0)


def terms(config, cl, st, teacher_logits, labels):
    """The named losses of a batch; without a teacher the target is never used."""
    kind, temperature = config.get("st_loss") or config.get("loss") or "none", config.get("T") or 1
    reduction = config.get("reduction", "mean")
    target = dkt_losses.student_target(jnp.asarray(st if teacher_logits is None else teacher_logits), kind, temperature)
    true = dkt_losses.class_loss(cl, jnp.asarray(labels), reduction)
    st_loss = dkt_losses.student_loss(st, target, kind, temperature, reduction)
    return {"cl_loss": true, "st_loss": st_loss, "total_loss": true + config["kd_rel"] * st_loss}


def _optimizer(config):
    """Returns (clipping of gradients or nothing, the program's optimizer).

    The optimizer is Adam, AdamW or SGD with torch's defaults.
    """
    bound, rate, decay = config.get("clip_global_norm"), config["lr"], config.get("weight_decay")
    moments = (*config.get("betas", (0.9, 0.999)), config.get("eps", 1e-8))
    name = config.get("optimizer", "adam").lower()
    clip = optax.clip_by_global_norm(bound) if bound else optax.identity()
    if name == "adamw":
        return clip, optax.adamw(rate, *moments, weight_decay=0.01 if decay is None else decay)
    own = {"adam": optax.adam(rate, *moments), "sgd": optax.sgd(rate, config.get("momentum") or None)}[name]
    return clip, optax.chain(optax.add_decayed_weights(decay or 0.0), own)


@partial(jax.jit, static_argnums=0)
def _teacher_step(module, variables, images):
    """Returns (training-mode teacher logits, variables with new running statistics)."""
    (logits, _), stats = apply(module, variables, images, True, _KEY)
    return logits[0] if isinstance(logits, tuple) else logits, {**variables, **stats}


def _trainer(config, module):
    """Returns the optimizer and a compiled step.

    The step returns (variables, optimizer state), (named outputs, clipped gradients).
    """
    clip, adam = _optimizer(config)

    def loss(params, variables, images, labels, teacher_logits):
        ((cl, st), _), stats = apply(module, {**variables, "params": params}, images, True, _KEY)
        named = terms(config, cl, st, teacher_logits, labels)
        return named["total_loss"], ({"cl_logits": cl, "st_logits": st, **named}, stats)

    @jax.jit
    def step(variables, opt, images, labels, teacher_logits):
        params = variables["params"]
        gradients, (outputs, stats) = jax.grad(loss, has_aux=True)(params, variables, images, labels, teacher_logits)
        outputs |= {"grad_norm_before_clip": optax.tree.norm(gradients), "teacher_logits": teacher_logits}
        gradients, _ = clip.update(gradients, clip.init(params))
        direction, opt = adam.update(gradients, opt, params)
        params = optax.apply_updates(params, direction)
        return ({**variables, **stats, "params": params}, opt), (outputs, gradients)

    return adam, step


def _batches(arrays, start):
    count = sum(name.startswith(start + "step") and name.endswith("/x") for name in arrays)
    where = [f"{start}step{i}/" for i in range(count)]
    return [(to_nhwc(arrays[at + "x"].astype(np.float64)), arrays[at + "labels"]) for at in where]


def _teacher_logits(teacher, theirs, images):
    """The logits of a teacher, and its variables after all calls of the program."""
    for _ in range(_CALLS):
        logits, theirs = _teacher_step(teacher, theirs, images)
    return logits, theirs


@jax.enable_x64(True)
def run_taught(config, arrays):
    """Two steps with a frozen teacher of one head."""
    own, of_teacher = part_of(arrays, "param/student/"), part_of(arrays, "param/teacher/")
    module, teacher = build(own), build(of_teacher)
    live, theirs = load(module, own, jnp.float64), load(teacher, of_teacher, jnp.float64)
    adam, step = _trainer(config, module)
    opt, ours = jax.jit(adam.init)(live["params"]), {}
    for number, (images, labels) in enumerate(_batches(arrays, "in/")):
        logits, theirs = _teacher_logits(teacher, theirs, images)
        (live, opt), (outputs, gradients) = step(live, opt, images, labels, logits)
        ours |= {f"out/step{number}/{name}": value for name, value in outputs.items()}
        if number == 0:
            ours |= {f"grad/{name}": value for name, value in to_torch({"params": gradients}, own).items()}
    ours |= {f"out/params_after_step{number}/{name}": value for name, value in to_torch(live, own).items()}
    stats = {"batch_stats": theirs["batch_stats"]}
    return ours | {f"out/teacher_buffers_after/{name}": value for name, value in to_torch(stats, of_teacher).items()}


@jax.enable_x64(True)
def run_peers(config, arrays):
    """Trains two learners in turns, each the other's teacher.

    The running statistics of the teacher move as in the program.
    """
    # One state for both, which is the program's default, or one each.
    states = {name: part_of(arrays, f"param/{name}/") or part_of(arrays, "param/") for name in "AB"}
    state, module = states["A"], build(states["A"])
    live = {name: load(module, states[name], jnp.float64) for name in "AB"}
    adam, step = _trainer(config, module)
    ours = {}
    for task in range(len(config["experiences_A"])):
        for name, peer in ("AB", "BA"):
            opt = jax.jit(adam.init)(live[name]["params"])
            for number, (images, labels) in enumerate(_batches(arrays, f"in/{name}/exp{task}/")):
                logits, live[peer] = _teacher_logits(module, live[peer], images)
                (live[name], opt), (outputs, _) = step(live[name], opt, images, labels, logits)
                ours |= {f"out/{name}/exp{task}/step{number}/{key}": value for key, value in outputs.items()}
    for name, variables in live.items():
        ours |= {f"out/{name}/params_after/{key}": value for key, value in to_torch(variables, state).items()}
    return ours


class _Perceptron(nn.Module):
    """One hidden layer and a classifier instead of a convolutional network."""

    hidden: int
    num_classes: int

    @nn.compact
    def __call__(self, x, train):
        features = nn.relu(nn.Dense(self.hidden, name="first")(x))
        return nn.Dense(self.num_classes, name="classifier")(features), {"features": features}


# The fixtures' names of our layers.
_LAYERS = {"backbone/first": ("w1", "b1"), "backbone/classifier": ("cl.w", "cl.b"), "student": ("st.w", "st.b")}


def run_simultaneous(config, arrays):
    """Runs the method itself: learners that train at the same time.

    Each learner trains after the published snapshots of the others.
    """
    options = configs.default("dkt", data="glyph_mini").dkt
    options.update(st_loss=config["st_loss"], temperature=float(config["T"]), kd_rel=float(config["kd_rel"]), replay=0)
    count, classes = config["n_learners"], config["num_classes"]
    options.update(num_learners=count, exchange_interval=config["exchange_every_steps"], stream_order="same")
    options.topology = tuple(map(tuple, arrays["in/mixing_matrix"].tolist()))
    module = TwoHeads(_Perceptron(config["hidden"], classes), classes)
    method = dkt.assemble(
        dkt_learners.ConvolutionalLearner(module, image_size=0),
        (),
        options,
        StreamInfo(classes, (classes,)),
        batch_size=len(arrays["in/labels"][0][0]),
        epochs=1,
        optimizer=optim.Optimizer(optax.identity(), lambda progress: config["lr"]),
    )
    variables = {name: {"params": _of_learner(arrays, i)} for i, name in enumerate(method.names)}
    variables |= method.exchange.init(variables)
    batches = [
        {"images": jnp.asarray(x), "labels": jnp.asarray(labels)}
        for x, labels in zip(arrays["in/x"], arrays["in/labels"], strict=True)
    ]
    place = context(0, classes)
    losses, targets, history = [], [], train(method, variables, batches, [place] * len(batches))
    for batch, (after, outputs) in zip(batches, history, strict=True):
        share = method.exchange.shared_inputs(after, place)
        targets.append([method.learner_loss.st_target(x, i, share, place)[0] for i, x in enumerate(batch["images"])])
        each = [[outputs[f"{name}/{what}"] for what in ("class_loss", "student_loss")] for name in method.names]
        losses.append([[cl_loss, st_loss, cl_loss + config["kd_rel"] * st_loss] for cl_loss, st_loss in each])
    ours = {"out/losses_step_learner_cl_st_total": losses, "out/targets_step_learner": targets}
    for i, name in enumerate(method.names):
        params = flatten_dict(history[-1][0][name]["params"], sep="/")
        for at, (w, b) in _LAYERS.items():
            ours[f"out/params_after/learner{i}/{w}"] = np.asarray(params[f"{at}/kernel"]).T
            ours[f"out/params_after/learner{i}/{b}"] = params[f"{at}/bias"]
    return ours


def _of_learner(arrays, number):
    state, flat = part_of(arrays, f"param/learner{number}/"), {}
    for at, (w, b) in _LAYERS.items():
        flat |= {f"{at}/kernel": jnp.asarray(state[w].T), f"{at}/bias": jnp.asarray(state[b])}
    return unflatten_dict(flat, sep="/")
