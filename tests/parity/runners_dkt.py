"""Runners of the DKT fixtures that do not train.

The runners compute networks, loss terms, schedules, replay, metrics and similarity.

A runner maps (config, arrays) to {"out/..." or "grad/...": array}.
"""

from functools import partial
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict
from scipy.spatial.distance import pdist

from cdl_jax import optim
from cdl_jax.data import replay
from cdl_jax.data.transforms import mixing
from cdl_jax.evaluation import metrics, similarity
from cdl_jax.losses import cross_entropy
from cdl_jax.methods.shared import dkt_losses, dkt_metrics
from cdl_jax.models.modules.conv import apply
from cdl_jax.options import defaults
from cdl_jax.run import early_stopping
from tests.parity import steps_dkt
from tests.parity.compiled import compiled
from tests.parity.programs_dkt import build, load, our_name, part_of, to_torch
from tests.parity.programs_okddip import to_nhwc


def run_model(config, arrays):
    """Runs a two-headed network in both modes, with training loss and all gradients."""
    state = part_of(arrays, "param/")
    module = build(state)
    variables, images = load(module, state), to_nhwc(arrays["in/x"])

    def forward(params, train):
        ((cl, st), out), stats = apply(module, {**variables, "params": params}, images, train, jax.random.key(0))
        return {"features": out["features"], "cl_logits": cl, "st_logits": st}, stats

    def loss(params):
        outputs, stats = forward(params, True)
        terms = steps_dkt.terms(
            config, outputs["cl_logits"], outputs["st_logits"], arrays.get("in/teacher_logits"), arrays["in/labels"]
        )
        return terms["total_loss"], ({**outputs, **terms}, stats)

    in_test, _ = jax.jit(forward, static_argnums=1)(variables["params"], False)
    gradients, (in_training, stats) = jax.jit(jax.grad(loss, has_aux=True))(variables["params"])
    ours = {f"out/eval/{name}": value for name, value in in_test.items()}
    ours |= {f"out/train/{name}": value for name, value in in_training.items()}
    ours |= {f"out/train/buffers_after/{name}": value for name, value in to_torch(stats, state).items()}
    return ours | {f"grad/{name}": value for name, value in to_torch({"params": gradients}, state).items()}


@compiled
def run_loss(config, arrays):
    given = [jnp.asarray(arrays[f"in/{name}"]) for name in ("cl_logits", "st_logits")]

    def loss(cl, st):
        terms = steps_dkt.terms(config, cl, st, arrays.get("in/teacher_logits"), arrays["in/labels"])
        return terms["total_loss"], terms

    (of_cl, of_st), terms = jax.grad(loss, argnums=(0, 1), has_aux=True)(*given)
    return {f"out/{name}": value for name, value in terms.items()} | {
        "grad/cl_logits": of_cl,
        "grad/st_logits": of_st,
    }


def _active(config, arrays):
    """Returns the active classes and the logits of the previous network.

    The first task has no active classes and no previous network, so that the logits are zeros.
    """
    shape = arrays["in/logits"].shape
    active = jnp.isin(jnp.arange(shape[1]), jnp.array(config["active_classes"], int))
    return active, arrays.get("in/prev_logits", np.zeros(shape, np.float32))


@compiled
def run_lwf(config, arrays):
    active, before = _active(config, arrays)

    def loss(logits):
        true = cross_entropy(logits, arrays["in/labels"], jnp.ones_like(active))
        kept = config["alpha"] * dkt_losses.lwf_loss(logits, before, active, config["T"])
        return true + kept, {"out/ce_loss": true, "out/distill_penalty": kept, "out/total_loss": true + kept}

    gradient, ours = jax.grad(loss, has_aux=True)(jnp.asarray(arrays["in/logits"]))
    return {**ours, "grad/logits": gradient}


@compiled
def run_eeil(config, arrays):
    active, before = _active(config, arrays)

    def loss(logits):
        kept = dkt_losses.eeil_loss(logits, before, active, config["T"])
        return config["alpha"] * kept

    value, gradient = jax.value_and_grad(loss)(jnp.asarray(arrays["in/logits"]))
    return {"out/distill_loss": value, "grad/logits": gradient}


@compiled
def run_cutmix(config, arrays):
    images = to_nhwc(arrays["in/x"])
    size = images.shape[1:3]
    draws = zip(arrays["in/lam"], arrays["in/cx"], arrays["in/cy"], strict=True)
    boxes = [mixing.cutmix_box(jnp.float32(lam), centre, *size) for lam, *centre in draws]
    mixed = mixing.cutmix_images(images, boxes[0], images[arrays["in/permutation"]])
    _, other, _ = mixing.cutmix(images, jnp.arange(len(images)), jax.random.key(0), 1.0)
    return {
        "out/boxes_x1y1x2y2": [[top, left, bottom, right] for top, bottom, left, right in boxes],
        "out/adjusted_lam": [mixing.kept_area(box, *size) for box in boxes],
        "out/x_mixed_with_first_box": mixed.transpose(0, 3, 1, 2),
        "out/labels_used_by_the_loss": jnp.sort(other),  # the original ones, of which the others are a permutation
    }


def run_cutmix_probability(config, arrays):
    del arrays
    return {
        f"out/{theirs}/{name}": mixing.cutmix_probability(ramp, c["target"], np.arange(c["listed_epochs"]), c["epochs"])
        for name, c in config.items()
        if isinstance(c, dict)
        for ramp, theirs in (("as_coded", "as_coded"), ("linear", "intended"))
    }


def run_early_stopping(config, arrays):
    """When a task ends, and with which weights.

    Where the first weights stay the best, these are kept: number 0. Where nothing stops the task, it ends after the
    last epoch with the last weights. A case may have a negative number for either.
    """
    seen = arrays["in/accuracy_seen_before_epoch"]
    names = ("stopped_before_epoch", "restored_weights_of_epoch")
    stopped, restored = (int(arrays.get(f"out/{name}", 0)) for name in names)
    for epoch in range(len(seen)):
        found = early_stopping.decide(seen[: epoch + 1], config["patience"], config["margin"])
        if found.stop:
            kept = min(restored, 0) if found.keep is None else found.keep
            break
    else:
        epoch = stopped if stopped < 0 else len(seen)
        kept = restored if restored < 0 else len(seen) - 1
    return {"out/stopped_before_epoch": epoch, "out/restored_weights_of_epoch": kept, "out/best_value": found.best}


@compiled
def run_kd_weight(config, arrays):
    ours = {}
    for name, c in config.items():
        if isinstance(c, dict):
            every = 0 if c["schedule"] is None else 1 if c["experience_flag"] else c["schedule"]
            step = -c["step_size"] if c["decreasing"] else c["step_size"]
            options = {"kd_rel": float(c["kd_rel_initial"]), "kd_every": every, "kd_step": float(step)}
            tasks = len(arrays[f"out/kd_rel/{name}"])
            weight = partial(dkt_losses.kd_weight, ConfigDict(defaults(dkt_losses.OPTIONS, **options)), num_tasks=tasks)
            ours[f"out/kd_rel/{name}"] = jax.vmap(weight)(jnp.arange(tasks))
    return ours


@compiled
def run_rate(config, arrays):
    del arrays
    epochs, step = config["epochs"], config["step"]  # a step of 0: the rate is constant
    options = defaults(optim.OPTIONS, learning_rate=config["lr"], schedule="steps")
    options["milestones"] = tuple(range(step, epochs, step)) if step else ()
    rates = jax.vmap(optim.schedule(SimpleNamespace(**options), epochs))(jnp.arange(epochs, dtype=jnp.float32))
    return {"out/lr": jnp.tile(rates, config["n_experiences"])}


@compiled
def run_gradient_noise(config, arrays):
    steps = jnp.asarray(arrays["in/iteration"])
    return {"out/stddev": dkt_losses.gradient_noise_std(steps, config["eta"], config["gamma"])}


def run_group_lengths(config, arrays):
    lengths = np.zeros_like(arrays["out/lengths"])
    for n in range(1, len(lengths) + 1):
        lengths[n - 1, :n] = replay.group_lengths(config["mem_size"], n)
    return {"out/lengths": lengths}


def run_stream_accuracy(config, arrays):
    counts = config["experience_sizes"]
    trained = config["trained_up_to_experience"] + 1

    def rows(head, right):
        found = [right(arrays[f"in/exp{i}/{head}_logits"], arrays[f"in/exp{i}/labels"]) for i in range(len(counts))]
        return [np.mean(of_task) for of_task in found]

    def best(logits, labels):
        return logits.argmax(axis=1) == labels

    cl = rows("cl", best)
    return {
        "out/cl_stream_accuracy": metrics.stream_accuracy(cl, counts),
        "out/st_stream_accuracy": metrics.stream_accuracy(rows("st", best), counts),
        "out/cl_trained_experiences_accuracy": metrics.stream_accuracy(cl[:trained], counts[:trained]),
        "out/cl_per_experience_accuracy": cl,
        "out/cl_rounded_softmax_accuracy": metrics.stream_accuracy(rows("cl", dkt_metrics.rounded_correct), counts),
    }


def run_forgetting(config, arrays):
    matrix = metrics.as_matrix([row[: i + 1] for i, row in enumerate(arrays["in/accuracy_matrix"])])
    each, most = metrics.forgetting_by_task(matrix), metrics.forgetting_by_task(matrix, best=True)
    return {
        "out/forgetting_per_experience": each,
        "out/stream_forgetting": each.mean(),
        "out/stream_forgetting_after_each_experience": metrics.forgetting_after_each(matrix),
        "out/forgetting_max_variant_per_experience": most,
        "out/forgetting_max_variant": most.mean(),
        "out/backward_transfer": metrics.backward_transfer(matrix),
        "out/average_incremental_accuracy": metrics.average_incremental(matrix),
    }


def run_cka(config, arrays):
    x, y = ([arrays[f"in/{name}{i}"] for i in range(len(config["batch_sizes"]))] for name in "xy")
    pairs = [([a], [b]) for a, b in zip(x, y, strict=True)]
    return {
        "out/hsic_kk_kl_ll": np.mean([similarity.hsic_terms(*pair) for pair in pairs], axis=0)[:, 0, 0],
        "out/cka_minibatch_unbiased": similarity.cka(pairs)[0, 0],
        "out/cka_full_batch_biased_linear": similarity.linear_cka(np.concatenate(x), np.concatenate(y)),
    }


def run_cka_layers(config, arrays):
    """Rows: layers of a single-headed network; columns: of a two-headed one."""
    features_of_networks = []
    for number, prefix in ((1, ""), (2, "backbone/")):
        state = part_of(arrays, f"param/model{number}/")
        module = build(state)
        variables, chosen = load(module, state), [prefix + our_name(name, state) for name in config["layers"]]
        batches = [to_nhwc(arrays[f"in/x{i}"]) for i in range(len(config["batches"]))]
        found = [similarity.intermediates(module, variables, x, chosen) for x in batches]
        features_of_networks.append([[outputs[path] for path in chosen] for outputs in found])
    return {"out/cka_matrix": similarity.cka(zip(*features_of_networks, strict=True))}


def run_tsne(config, arrays):
    """Runs the pieces of scikit-learn's t-SNE under scikit-learn's own names.

    `similarity.tsne` runs the same pieces.
    """
    from sklearn.manifold import _t_sne, _utils

    projected = similarity.project(arrays["in/x"], config["pca_dims"])
    count, perplexity = len(projected), config["perplexity"]
    squared_distances = np.zeros((count, count), np.float32)
    squared_distances[np.triu_indices(count, 1)] = pdist(projected, "sqeuclidean")
    squared_distances += squared_distances.T
    joint = _t_sne._joint_probabilities(squared_distances, perplexity, 0)
    joint_matrix = np.zeros((count, count))
    joint_matrix[np.triu_indices(count, 1)] = joint
    start = arrays["in/y0"].astype(np.float64)
    _, gradient = _t_sne._kl_divergence(start.ravel(), 4 * joint, 1.0, count, 2)
    return {
        "out/pca_abs": np.abs(projected),
        "out/conditional_p": _utils._binary_search_perplexity(squared_distances, perplexity, 0),
        "out/joint_p": joint_matrix + joint_matrix.T,
        "out/first_gradient_with_exaggeration4": gradient.reshape(count, 2) / 4,
    }


RUNNERS = {
    "model_twohead": run_model,
    "loss_mse": run_loss,
    "loss_kd": run_loss,
    "loss_no_kd": run_loss,
    "loss_readme_soft_mse": run_loss,
    "loss_lwf": run_lwf,
    "loss_eeil_distill": run_eeil,
    "cutmix_apply": run_cutmix,
    "early_stopping_trace": run_early_stopping,
    "replay_group_lengths": run_group_lengths,
    "sched_cutmix_prob": run_cutmix_probability,
    "sched_gradient_noise": run_gradient_noise,
    "sched_kd_rel": run_kd_weight,
    "sched_step_lr": run_rate,
    "metric_stream_accuracy": run_stream_accuracy,
    "metric_forgetting": run_forgetting,
    "metric_cka": run_cka,
    "metric_cka_layers": run_cka_layers,
    "tsne_pieces": run_tsne,
    "steps_pretrained_teacher": steps_dkt.run_taught,
    "steps_joint_teacher": steps_dkt.run_taught,
    "steps_two_peers": steps_dkt.run_peers,
    "proposal": steps_dkt.run_simultaneous,
}
