"""Runners of OKDDip that train: two steps of every method, runs of four epochs."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax import config as configs
from cdl_jax import plugins
from cdl_jax.losses import cross_entropy
from cdl_jax.methods import kd, okddip, one
from cdl_jax.methods.base import StreamInfo, join
from cdl_jax.methods.shared import peer_losses, peers
from cdl_jax.models.modules.conv import apply
from tests.parity.programs_okddip import build, context, load, to_nhwc, to_torch
from tests.parity.steps_cdl import start, train


def count_of(config):
    """Returns the number of peers of a case."""
    return config.get("networks", config.get("branches", 0))


@partial(jax.jit, static_argnums=2)
def percent(logits, labels, k):
    """Percent of a batch whose label is among the `k` largest logits."""
    allowed = jnp.ones(logits.shape[-1], bool)
    return 100 * peer_losses.top_k_correct(logits, labels, k, allowed).mean()


def _stack(arrays):
    return jnp.stack(arrays, axis=-1)


def outputs(method, variables, images, train):
    """({name as the fixtures have it: output}, new running statistics) of a batch."""
    out, stats, _ = _outputs(method, variables, images, train)
    return out, stats


def _outputs(method, variables, images, train):
    """As `outputs`, and the logits of each network with what its loss needs."""
    key = jax.random.key(0)
    if not isinstance(method, peers.PeerMethod):
        name, module = ("network", method.backbone) if hasattr(method, "backbone") else ("student", method.student)
        (logits, out), stats = apply(module, variables[name], images, train, key)
        ours = {"logits": logits, "features": out["features"]}
        if name == "student":
            ours["teacher_logits"], _ = method.teacher.module.apply(variables["teacher"], images)
        return ours, {name: stats} if train else {}, ({name: logits}, None)
    seen, mixing = method.forward(variables, images, train, key)
    ours = {"pro": _stack(seen.logits)}
    if "attention" in variables:
        leader = "leader" in method.networks
        attended, led = okddip.split_leader(seen, leader)
        features = okddip.attended_features(seen, leader)
        query, key_ = (features @ variables["attention"]["params"][n]["kernel"] for n in ("query", "key"))
        ours = {"pro": _stack(attended), "attention": mixing, "energy": jnp.einsum("bad,bcd->bac", query, key_)}
        ours["x_m"] = okddip.mix_outputs(mixing, attended).transpose(0, 2, 1)
        if leader:
            ours["leader"] = led
    elif "gate" in variables:
        ours |= {"gate": mixing, "x_m": one.gate_ensemble(seen, mixing)}
    else:
        ours["x_m"] = _stack(peers.mean_logits_of_others(seen.logits))
    stats = {name: value for name, value in seen.stats.items() if value}
    return ours, stats, (method.logits(seen, mixing), (seen, mixing))


def _forward(method, train, variables, images, labels, place):
    """(outputs, logits by network, named loss terms, diversity by image) of a batch."""
    out, _, (logits, seen) = _outputs(method, variables, images, train)
    allowed, diversity = place.current(method.info.num_classes), None
    if seen is not None:
        value, terms = method.loss_terms(*seen, labels, allowed, place.epoch)
        diversity = method.extra_metrics(logits, labels, place)["diversity"]
    elif "teacher_logits" in out:
        value, terms = kd.loss_and_metrics(method.options, out["logits"], out["teacher_logits"], labels, allowed)
    else:
        value, terms = cross_entropy(out["logits"], labels, allowed), {}
    return out, logits, {"loss": value, **terms}, diversity


def _logged(method, terms, logits, labels, prefix):
    """Returns the program's log of a batch, by its names for `train` or `test`."""
    ours = {f"{prefix}_loss": terms["loss"], f"{prefix}_true_loss": terms.get("true_loss", 0.0)}
    ours |= {
        f"{prefix}_group_loss": terms.get("group_loss", 0.0),
        f"{prefix}_teacher_loss": terms.get("teacher_loss", 0),
    }
    if not isinstance(method, peers.PeerMethod):
        if prefix == "test" and "teacher_loss" in terms:
            ours["test_loss"] = terms["true_loss"]  # KD's test loss is the cross-entropy alone
        alone = logits[method.networks[-1]]
        return ours | {f"{prefix}_accTop{k}": percent(alone, labels, k) for k in (1, 5)}
    for k in (1, 5):
        ours[f"{prefix}_accTop{k}"] = percent(logits["ensemble"], labels, k)
        # In training the program logs the top 1 under both names.
        ranks = 1 if prefix == "train" else k
        ours[f"mean_{prefix}_accTop{k}"] = np.mean([percent(logits[n], labels, ranks) for n in method.compared_peers])
        ours |= {
            f"stu{i}{prefix}_accTop{k}": percent(logits[n], labels, k) for i, n in enumerate(method.compared_peers)
        }
        if "leader" in logits:
            ours[f"stu_{prefix}_accTop{k}"] = percent(logits["leader"], labels, k)
    return ours


def _test(method, forward, variables, batches, place):
    """The program's test metrics: means over batches, the diversity over images."""
    rows, distances = [], []
    for images, labels in batches:
        _, logits, terms, diversity = forward(variables, images, labels, place)
        rows.append(_logged(method, terms, logits, labels, "test"))
        distances.append(diversity)
    ours = {name: np.mean([float(row[name]) for row in rows]) for name in rows[0]}
    if distances[0] is not None:
        ours["dist"] = np.mean(np.concatenate(distances))
    return ours


def _variables(config, arrays):
    """(method, its variables, names of the program's state) of a case."""
    method, shapes, state = build(config, arrays)
    theirs = {name[6:]: array for name, array in arrays.items() if name.startswith("param/")}
    if "teacher" not in shapes:
        return method, load(shapes, state, theirs, count_of(config)), state
    taught = {name[14:]: array for name, array in arrays.items() if name.startswith("param_teacher/")}
    variables = load({"student": shapes["student"]}, state, theirs)
    return method, {**variables, **load({"teacher": shapes["teacher"]}, list(taught), taught)}, state


def _batches(arrays, start_):
    count = sum(name.startswith(start_) and name.endswith("/x") for name in arrays)
    return [(to_nhwc(arrays[f"{start_}{i}/x"]), arrays[f"{start_}{i}/labels"]) for i in range(count)]


def unused(arrays, where):
    """Returns the gate of individual branches.

    No computation of the program reads these parameters, so that our networks have no such parameters.
    """
    gate = [name for name in arrays if name.startswith(("param/control_v1.", "param/bn_v1."))]
    return {name.replace("param/", where): arrays[name] for name in gate}


def _own(variables):
    """Without a teacher."""
    return {name: value for name, value in variables.items() if name != "teacher"}


def run_step(config, arrays):
    method, live, state = _variables(config, arrays)
    count, place = count_of(config), context(config["num_classes"], config["epoch_index"])
    update = method.phases[0].updates[0]
    opt, steps = start(update, live), _batches(arrays, "in/step")
    ours = unused(arrays, f"out/after_{len(steps)}_steps/")
    in_training, in_test = (jax.jit(partial(_forward, method, train)) for train in (True, False))
    for step, (images, labels) in enumerate(steps):
        where = f"out/step{step}/"
        out, logits, *_ = in_training(live, images, labels, place)
        ours |= {where + name: value for name, value in out.items()}
        (live, opt), (total, outcome, gradients, _) = train(
            update, live, opt, {"images": images, "labels": labels}, place
        )
        terms = {**outcome.metrics, "loss": total}
        renamed = {"true": "true_loss", "group": "group_loss", "total": "loss", "teacher": "teacher_loss"}
        renamed |= {"ce_peers": "true_loss", "ce_leader": "leader_true_loss", "dis1": "group_loss"}
        renamed["dis2"] = "leader_group_loss"
        ours |= {f"{where}loss/{theirs}": terms.get(own, 0.0) for theirs, own in renamed.items()}
        ours |= {f"{where}metric/{n}": v for n, v in _logged(method, terms, logits, labels, "train").items()}
        if step == 0:
            ours |= {f"grad/{n}": v for n, v in to_torch(_own(gradients), state, count).items()}
    after = to_torch(_own(live), state, count)
    ours |= {f"out/after_{len(steps)}_steps/{name}": value for name, value in after.items()}
    tests = _batches(arrays, "in/test")
    for i, (images, labels) in enumerate(tests):
        out, *_ = in_test(live, images, labels, place)
        ours |= {f"out/test{i}/{name}": value for name, value in out.items()}
    return ours | {
        f"out/evaluation/{name}": value for name, value in _test(method, in_test, live, tests, place).items()
    }


def run_epochs(config, arrays):
    method, live, state = _variables({"loss": "KL", **config}, arrays)
    update = method.phases[0].updates[0]
    in_training, in_test = (jax.jit(partial(_forward, method, train)) for train in (True, False))
    opt, ours, best = start(update, live), {}, (-1.0, 0)
    trains, tests = _batches(arrays, "in/train"), _batches(arrays, "in/test")
    for epoch in range(config["epochs"]):
        place, rows = context(config["num_classes"], epoch), []
        for images, labels in trains:
            _, logits, *_ = in_training(live, images, labels, place)
            batch = {"images": images, "labels": labels}
            (live, opt), (total, outcome, _, rate) = train(update, live, opt, batch, place)
            rows.append(_logged(method, {**outcome.metrics, "loss": total}, logits, labels, "train"))
        where, tested = f"out/epoch{epoch}/", _test(method, in_test, live, tests, place)
        ours |= {where + name: np.mean([float(row[name]) for row in rows]) for name in rows[0]}
        ours |= {where + name: value for name, value in tested.items()}
        ours |= {where + "lr": rate, where + "weight": outcome.metrics.get("weight", 0.0), where + "epoch": epoch + 1}
        leading = ("stu_test_accTop1", "mean_test_accTop1", "test_accTop1")  # of the leader, the peers, one network
        chosen = next(tested[name] for name in leading if name in tested)
        best = max(best, (chosen, epoch + 1))
    ours |= {"out/best_epoch": best[1], "out/best_accuracy": best[0], **unused(arrays, "out/final/")}
    after = to_torch(_own(live), state, count_of(config))
    return ours | {f"out/final/{name}": value for name, value in after.items()}


def _shapes(method, size, classes, networks, count):
    """Shapes of the variables of a full-size model, with all of the program's ways."""
    choices = {} if method == "supervised" else {"reference": True}
    if method == "okddip":
        choices["base"] = "network" if networks else "branch"
    made = configs.default(method, data="glyph_mini", network=size, **choices)
    if count:
        made[method].num_branches = count
    built = plugins.load_plugin("methods", method).build(made, StreamInfo(classes, (classes,)))
    return jax.eval_shape(built.init, jax.random.key(0))


def parameter_count(method, size, classes, networks, count):
    """Trained numbers of a full-size model."""
    shapes = _shapes(method, size, classes, networks, count)
    return sum(leaf.size for network in shapes.values() for leaf in jax.tree.leaves(network["params"]))


def state_of(method, size, classes, state):
    """{the program's name: its shape} of a full-size model of four peers, or alone."""
    shapes = _shapes(method, size, classes, False, 0 if method == "supervised" else 4)
    zeros = jax.tree.map(lambda x: np.broadcast_to(np.float32(0), x.shape), shapes)
    return {name: leaf.shape for name, leaf in to_torch(join(zeros), state, 4).items()}
