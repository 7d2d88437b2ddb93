"""Runners of the OKDDip fixtures that do not train.

The runners compute full-size networks, loss terms, schedules and structure.

A runner maps (config, arrays) to {"out/..." or "grad/...": array}.
"""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from cdl_jax import optim
from cdl_jax.methods import cl_ilr, dml, individual, kd, okddip, one
from cdl_jax.methods.base import join
from cdl_jax.methods.shared import peer_losses
from cdl_jax.methods.shared.peers import mean_logits_of_others, peer_and_ensemble_logits
from cdl_jax.models.modules import families
from cdl_jax.models.peers import attention_and_gate
from cdl_jax.models.peers.networks import PeerOutputs
from cdl_jax.options import defaults
from tests.parity import steps_okddip
from tests.parity.compiled import compiled
from tests.parity.programs_okddip import build, generated, load, to_nhwc, to_torch
from tests.parity.steps_okddip import count_of, outputs, percent


def run_full(config, arrays):
    """Runs a full-size model with generated weights in both modes.

    The running statistics are those after one call.
    """
    images = to_nhwc(arrays["in/x"])
    method, shapes, state = build(config, arrays, images.shape[1])
    count = count_of(config)
    theirs = generated(config["names"])
    trained = [shape for name, shape in config["names"] if "running" not in name]
    assert sum(int(np.prod(shape)) for shape in trained) == config["params"]
    variables = load(shapes, state, theirs, count)
    assert sum(x.size for p, x in flatten_dict(variables).items() if "batch_stats" not in p) == config["params"]
    ours = {}
    for mode in ("eval", "train"):
        out, stats = jax.jit(partial(outputs, method), static_argnums=2)(variables, images, mode == "train")
        ours |= {f"out/{mode}/{name}": value for name, value in out.items()}
    after = to_torch(join(variables, stats), state, count)
    ours |= {f"out/train/buffer/{name}": value for name, value in after.items() if "running" in name}
    ours["out/train/sum_of_all_running_stats"] = sum(float(v.sum()) for n, v in after.items() if "running" in n)
    return ours


def _options(config):
    keys = {"rampup_length": "length"}
    options = {"start_consistency": 0.0, "detach_targets": False, "en": False, "aggregate": "logits"}
    return ConfigDict({**options, **{keys.get(key, key): value for key, value in config.items()}})


def _seen(logits, features=()):
    return PeerOutputs(tuple(logits[..., i] for i in range(logits.shape[-1])), tuple(features))


def _accuracies(logits, labels, rivals):
    """Returns the program's log of a training batch; its mean top 5 is the mean top 1."""
    ours = {"train_accTop1": percent(logits["ensemble"], labels, 1)}
    ours["train_accTop5"] = percent(logits["ensemble"], labels, 5)
    for name in ("mean_train_accTop1", "mean_train_accTop5"):
        ours[name] = jnp.mean(jnp.array([percent(logits[peer], labels, 1) for peer in rivals]))
    for i, name in enumerate(rivals):
        ours |= {f"stu{i}train_accTop{k}": percent(logits[name], labels, k) for k in (1, 5)}
    if "leader" in logits:
        ours |= {f"stu_train_accTop{k}": percent(logits["leader"], labels, k) for k in (1, 5)}
    return ours


def _terms(where, value, terms, weight=None):
    ours = {"true": terms["true_loss"], "group": terms.get("group_loss", 0.0), "total": value}
    ours |= {"metric/train_loss": value, "metric/train_true_loss": ours["true"]}
    ours["metric/train_group_loss"] = ours["group"]
    if weight is not None:
        ours["weight"] = weight
    return {where + name: number for name, number in ours.items()}


def run_branch_loss(loss, config, arrays):
    """CL and individual branches: a loss of the logits alone."""
    options, labels = _options(config), jnp.asarray(arrays["in/labels"])
    allowed = jnp.ones(config["classes"], bool)
    logits, ours = jnp.asarray(arrays["in/logits"]), {}
    if "out/targets" in arrays:
        ours["out/targets"] = jnp.stack(mean_logits_of_others(_seen(logits).logits), axis=-1)
    named = peer_and_ensemble_logits(_seen(logits))
    for epoch in config["epochs"]:
        weight = peer_losses.ramp_up_weight(epoch, options, 300)
        both = jax.value_and_grad(lambda z, w=weight: loss(options, _seen(z), labels, allowed, w), has_aux=True)
        (value, terms), ours[f"grad/e{epoch}/logits"] = both(logits)
        ours |= _terms(f"out/e{epoch}/", value, terms, weight)
        accuracies = _accuracies(named, labels, list(named)[:-1])
        ours |= {f"out/e{epoch}/metric/{name}": number for name, number in accuracies.items()}
    return ours


def _scaled(terms):
    """`terms` with alpha in its weight."""
    return lambda options, seen, labels, allowed, weight: terms(options, seen, labels, allowed, options.alpha * weight)


@compiled
def run_dml_loss(config, arrays):
    options, labels = ConfigDict({**_options(config), "alpha": 1.0}), jnp.asarray(arrays["in/labels"])
    allowed, logits = jnp.ones(config["classes"], bool), jnp.asarray(arrays["in/logits"])
    both = jax.value_and_grad(lambda z: dml.loss_and_metrics(options, _seen(z), labels, allowed), has_aux=True)
    (value, terms), gradient = both(logits)
    named = peer_and_ensemble_logits(_seen(logits))
    accuracies = _accuracies(named, labels, list(named)[:-1])
    ours = {"grad/logits": gradient, **_terms("out/", value, terms)}
    return ours | {f"out/metric/{name}": number for name, number in accuracies.items()}


@compiled
def run_kd_loss(config, arrays):
    options, labels = _options(config), jnp.asarray(arrays["in/labels"])
    allowed = jnp.ones(config["classes"], bool)
    teacher = jnp.asarray(arrays["in/teacher_logits"])
    both = jax.value_and_grad(lambda z: kd.loss_and_metrics(options, z, teacher, labels, allowed), has_aux=True)
    (value, terms), gradient = both(jnp.asarray(arrays["in/logits"]))
    ours = {"out/true": terms["true_loss"], "out/teacher": terms["teacher_loss"], "out/total": value}
    return {**ours, "grad/logits": gradient}


@compiled
def run_one_loss(config, arrays):
    options, labels = _options(config), jnp.asarray(arrays["in/labels"])
    allowed, gate = jnp.ones(config["classes"], bool), attention_and_gate.Gate(config["branches"])
    shared = to_nhwc(arrays["in/shared_features"])
    shapes = {"gate": jax.eval_shape(gate.init, jax.random.key(0), shared)}
    theirs = {name[6:]: array for name, array in arrays.items() if name.startswith("param/")}
    defaults = {"bn_v1.running_mean": np.zeros(config["branches"]), "bn_v1.running_var": np.ones(config["branches"])}
    state = [*theirs, *defaults]
    variables = load(shapes, state, {**defaults, **theirs})["gate"]
    ours = {}

    def loss(params, shared, logits, weight):
        weights, stats = gate.apply({**variables, "params": params}, shared, True, mutable=["batch_stats"])
        seen = _seen(logits)
        value, terms = one.loss_and_metrics(options, seen, weights, labels, allowed, options.alpha * weight)
        return value, (terms, weights, one.gate_ensemble(seen, weights), stats)

    logits = jnp.asarray(arrays["in/logits"])
    named = peer_and_ensemble_logits(_seen(logits))
    accuracies = _accuracies(named, labels, list(named)[:-1])
    for epoch in config["epochs"]:
        weight = peer_losses.ramp_up_weight(epoch, options, 300)
        both = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)
        (value, (terms, weights, ensemble, stats)), gradients = both(variables["params"], shared, logits, weight)
        where = f"grad/e{epoch}/"
        ours |= {where + name: v for name, v in to_torch({"gate": {"params": gradients[0]}}, state).items()}
        ours |= {where + "shared_features": gradients[1].transpose(0, 3, 1, 2), where + "logits": gradients[2]}
        ours |= {"out/gate": weights, "out/ensemble_logits": ensemble}
        ours |= {f"out/{name}": v for name, v in to_torch({"gate": stats}, state).items()}
        ours |= _terms(f"out/e{epoch}/", value, terms, weight)
        ours |= {f"out/e{epoch}/metric/{name}": number for name, number in accuracies.items()}
    return ours


@compiled
def run_okddip_loss(config, arrays):
    options, labels = _options(config), jnp.asarray(arrays["in/labels"])
    allowed = jnp.ones(config["classes"], bool)
    attention = attention_and_gate.Attention(config["feature_dim"] // config["head_dim"])
    features, logits, leader = (jnp.asarray(arrays[f"in/{n}"]) for n in ("features", "logits_peers", "logits_leader"))
    shapes = {"attention": jax.eval_shape(attention.init, jax.random.key(0), features)}
    theirs = {name[6:]: array for name, array in arrays.items() if name.startswith("param/")}
    params = load(shapes, list(theirs), theirs)["attention"]["params"]
    query, key = (features @ params[name]["kernel"] for name in ("query", "key"))
    ours = {"out/energy": jnp.einsum("bad,bcd->bac", query, key)}

    def loss(params, features, logits, leader, weight):
        mixing = attention.apply({"params": params}, features)
        seen = _seen(jnp.concatenate([logits, leader[..., None]], axis=-1))
        value, terms = okddip.loss_and_metrics(options, seen, mixing, labels, allowed, options.alpha * weight)
        return value, (terms, mixing, okddip.mix_outputs(mixing, seen.logits[:-1]))

    named = peer_and_ensemble_logits(_seen(logits)) | {"leader": leader}
    accuracies = _accuracies(named, labels, [name for name in named if name.startswith("peer")])
    for epoch in config["epochs"]:
        weight = peer_losses.ramp_up_weight(epoch, options, 300)
        both = jax.value_and_grad(loss, argnums=(0, 1, 2, 3), has_aux=True)
        (value, (terms, mixing, mixed)), gradients = both(params, features, logits, leader, weight)
        where = f"grad/e{epoch}/"
        ours |= {where + n: v for n, v in to_torch({"attention": {"params": gradients[0]}}, list(theirs)).items()}
        ours |= {where + "features": gradients[1], where + "logits_peers": gradients[2]}
        ours |= {where + "logits_leader": gradients[3]}
        ours |= {"out/attention": mixing, "out/x_m": mixed.transpose(0, 2, 1)}
        ours |= _terms(f"out/e{epoch}/", value, terms, weight)
        renamed = {"ce_peers": "true_loss", "ce_leader": "leader_true_loss", "dis1": "group_loss"}
        renamed["dis2"] = "leader_group_loss"
        ours |= {f"out/e{epoch}/{theirs}": terms[own] for theirs, own in renamed.items()}
        ours |= {f"out/e{epoch}/metric/{name}": number for name, number in accuracies.items()}
    return ours


@compiled
def run_schedules(config, arrays):
    def rates(epochs, milestones):
        options = defaults(optim.OPTIONS, learning_rate=config["lr"], schedule="steps", milestones=milestones)
        schedule = optim.schedule(SimpleNamespace(**options), epochs)
        return jax.vmap(schedule)(jnp.arange(epochs, dtype=jnp.float32))

    kd_epochs = len(arrays["out/lr_kd_200_epochs"])
    ours = {"out/lr_default_300": rates(300, tuple(config["milestones"]))}
    ours["out/lr_kd_200_epochs"] = rates(kd_epochs, (kd_epochs // 2, 3 * kd_epochs // 4))
    for name, options in config["rampups"].items():
        options = ConfigDict({"start_consistency": 0.0, **options})
        weights = jax.vmap(lambda e, o=options: peer_losses.ramp_up_weight(e, o, o.get("num_epochs", 300)))
        ours[f"out/rampup_{name}"] = weights(jnp.arange(len(arrays[f"out/rampup_{name}"])))
    return ours


def check_structure(case):
    """Checks every model's parameter count, and names and shapes of the listed states."""
    for name, model in case["models"].items():
        classes = int(name.rsplit("_c", 1)[1]) if "_c1" in name else 1000
        known = [size for family in families.CONVOLUTIONAL for size in family.SIZES]
        size = max((s for s in known if s in name.replace("wrn20_8", "wide_resnet20_8")), key=len)
        method = "okddip" if "okddip" in name else "one" if "one_" in name else "supervised"
        listed = model["tensors"] or []
        count = steps_okddip.parameter_count(method, size, classes, "network" in name, 4 if "_m4" in name else 0)
        assert count == model["params"], (name, count, model["params"])
        if listed:
            shapes = steps_okddip.state_of(method, size, classes, [n for n, _ in listed])
            assert shapes == {n: tuple(s) for n, s in listed}, name


RUNNERS = {
    "arch_full": run_full,
    "branch_full": run_full,
    "network_full": run_full,
    "imagenet_resnet18": run_full,
    "imagenet_branch": run_full,
    "loss_clilr": compiled(partial(run_branch_loss, _scaled(cl_ilr.loss_and_metrics))),
    "loss_individual": compiled(partial(run_branch_loss, lambda _, *rest: individual.loss_and_metrics(*rest[:-1]))),
    "loss_dml_ensemble": run_dml_loss,
    "loss_dml_pairwise": run_dml_loss,
    "loss_kd": run_kd_loss,
    "loss_one": run_one_loss,
    "loss_okddip": run_okddip_loss,
    "schedule_lr_and_rampup": run_schedules,
    "step": steps_okddip.run_step,
    "run": steps_okddip.run_epochs,
}
