"""Runners of the fixtures of generation: networks, losses, augmentation, measures.

A runner maps (config, arrays) to {"out/..." or "grad/...": array}.
"""

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from ml_collections import ConfigDict

from cdl_jax.data import class_order
from cdl_jax.data.transforms import diff_augment
from cdl_jax.distill import vkd
from cdl_jax.distill.shared import gan_losses
from cdl_jax.evaluation import frechet
from cdl_jax.models import biggan, clip, weights
from cdl_jax.models.modules import spectral_norm
from cdl_jax.options import defaults
from tests.parity.biggan_names import from_torch, to_torch
from tests.parity.compiled import compiled

MUTABLE = ["batch_stats", "spectral"]


def to_nhwc(images):
    return jnp.moveaxis(jnp.asarray(images), 1, -1)


def to_nchw(images):
    return jnp.moveaxis(images, -1, 1)


def shapes_of(network, *inputs):
    return jax.eval_shape(lambda key: network.init(key, *inputs, False), jax.random.key(0))


@compiled
def run_spectral_norm(config, arrays):
    """Applies a layer to the unit vectors of its input.

    The outputs are the columns of the normalized weight.
    """
    shape = config["shape"]
    assert (config["eps"], config["iterations"]) == (spectral_norm.EPSILON, 1)
    if len(shape) == 2:
        layer, units = spectral_norm.SpectralDense(shape[0]), jnp.eye(shape[1])
    else:
        size = shape[2]
        layer = spectral_norm.SpectralConv(shape[0], size)
        center = jnp.zeros((size, size)).at[size // 2, size // 2].set(1)
        units = jnp.einsum("hw,ic->ihwc", center, jnp.eye(shape[1]))

    def weight_of(outputs):  # a convolution reverses rows and columns of an image of one point
        return outputs.T if outputs.ndim == 2 else outputs[:, ::-1, ::-1].transpose(3, 0, 1, 2)

    def use(weight, u, train):
        kernel = weight.T if weight.ndim == 2 else weight.transpose(2, 3, 1, 0)
        variables = {"params": {"kernel": kernel, "bias": jnp.zeros(shape[0])}, "spectral": {"u": u}}
        if not train:
            return weight_of(layer.apply(variables, units, False)), u
        outputs, state = layer.apply(variables, units, True, mutable=["spectral"])
        return weight_of(outputs), state["spectral"]["u"]

    weight, u, ours = jnp.asarray(arrays["param/weight"]), jnp.asarray(arrays["param/u0"]), {}
    for i in range(3):
        sigma, _ = spectral_norm.spectral_norm(weight.reshape(shape[0], -1), u, config["eps"])
        if i == 1:
            gradient = jax.grad(lambda w, u=u: (arrays["in/cotangent"] * use(w, u, True)[0]).sum())(weight)
        normalized, u = use(weight, u, train=True)
        ours |= {f"out/train_{i}/weight": normalized, f"out/train_{i}/sigma": sigma, f"out/train_{i}/u0": u}
    normalized, u = use(weight, u, train=False)
    return ours | {"out/eval/weight": normalized, "out/eval/u0": u, "grad/weight": gradient}


@compiled
def run_generator(config, arrays):
    network = biggan.Generator(config["ch"], config["classes"], config["z_dim"])
    z, labels = jnp.asarray(arrays["in/z"]), jnp.asarray(arrays["in/y"])
    variables = from_torch(arrays, "param", shapes_of(network, z, labels), "G")
    cotangent = to_nhwc(arrays["in/cotangent"])

    def loss(params, z):
        images, state = apply(network, {**variables, "params": params}, config["train"], z, labels)
        return (cotangent * images).sum(), (images, state)

    gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)
    (_, (images, state)), (of_params, of_z) = gradient(variables["params"], z)
    ours = {"out/images": to_nchw(images), "grad/in/z": of_z}
    return ours | to_torch({"params": of_params}, "grad", "G") | to_torch(state, "out/state", "G")


def apply(network, variables, train, *inputs):
    """Returns the outputs of a network and its state afterwards."""
    if train:
        return network.apply(variables, *inputs, True, mutable=MUTABLE)
    return network.apply(variables, *inputs, False), {name: variables[name] for name in MUTABLE if name in variables}


@compiled
def run_discriminator(config, arrays):
    head = (config["hidden_dim"], config["feature_dim"]) if config["feature_dim"] else ()
    network = biggan.Discriminator(config["ch"], config["classes"], head)
    images, labels = to_nhwc(arrays["in/images"]), jnp.asarray(arrays["in/y"])
    variables = from_torch(arrays, "param", shapes_of(network, images, labels), "D")

    def loss(params, images):
        out, state = apply(network, {**variables, "params": params}, config["train"], images, labels)
        total = (arrays["in/cotangent_score"][:, 0] * out.score).sum()
        if head:
            total += (arrays["in/cotangent_feature"] * out.features).sum()
        return total, (out, state)

    gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)
    (_, (out, state)), (of_params, of_images) = gradient(variables["params"], images)
    ours = {"out/score": out.score[:, None], "out/pooled": out.pooled, "out/feature": out.features}
    ours |= {"grad/in/images": to_nchw(of_images)}
    return ours | to_torch({"params": of_params}, "grad", "D") | to_torch(state, "out/state", "D")


@compiled
def run_hinge(config, arrays):
    scores = {name: jnp.asarray(arrays[f"in/{name}"]) for name in ("real", "fake")}

    def loss(scores):
        real, fake = gan_losses.discriminator_hinge(scores["real"], scores["fake"])
        return real + 2 * fake, (real, fake)

    gradients, (real, fake) = jax.grad(loss, has_aux=True)(scores)
    generator, gradient = jax.value_and_grad(gan_losses.generator_hinge)(scores["fake"])
    ours = {"out/real": real, "out/fake": fake, "out/generator": generator, "grad/generator/fake": gradient}
    return ours | {f"grad/in/{name}": value for name, value in gradients.items()}


@compiled
def run_lecam(config, arrays):
    start, decay = config["start"], config["decay"]
    inputs = jnp.asarray(arrays["in/real"]), jnp.asarray(arrays["in/fake"])

    def terms(real, fake):
        def step(means, row):
            means = means.update(row[1], row[2], row[0], start, decay)
            return means, (means, gan_losses.lecam(means, row[1], row[2], row[0], start))

        # The authors' first value, which has an effect only if `start` is 0.
        first = gan_losses.ScoreMeans(jnp.float32(1000), jnp.float32(1000))
        _, (means, terms) = jax.lax.scan(step, first, (jnp.arange(len(real)), real, fake))
        return terms.sum(), (means, terms)

    (_, (means, values)), gradients = jax.value_and_grad(terms, (0, 1), has_aux=True)(*inputs)
    ours = {"out/ema_real": means.real, "out/ema_fake": means.fake, "out/term": values}
    return ours | {"grad/in/real": gradients[0], "grad/in/fake": gradients[1]}


@compiled
def run_running_mean(config, arrays):
    """Row 0 is the first network, row i + 1 the network after iteration i."""
    rows = {name.removeprefix("in/"): jnp.asarray(array) for name, array in arrays.items() if name.startswith("in/")}
    means = [jax.tree.map(lambda x: x[0], rows)]
    for i in range(len(next(iter(rows.values()))) - 1):
        new = jax.tree.map(lambda x, i=i: x[i + 1], rows)
        means.append(gan_losses.update_mean(means[-1], new, i, config["start"], config["decay"]))
    return {f"out/{name}": jnp.stack([mean[name] for mean in means]) for name in rows}


@compiled
def run_diff_augment(config, arrays):
    assert (config["translation_ratio"], config["cutout_ratio"]) == (1 / 8, 1 / 2)
    images, ours = to_nhwc(arrays["in/images"]), {}
    names = [name for part in diff_augment.parse_policy(config["policy"]) for name in diff_augment.PARTS[part]]
    numbers = {name: jnp.asarray(arrays[f"in/{name}"]) for name in names}
    stages = {
        "brightness": diff_augment.change_brightness,
        "saturation": diff_augment.change_saturation,
        "contrast": diff_augment.change_contrast,
        "translation": diff_augment.translate,
        "cutout": diff_augment.cut_out,
    }
    x = images
    for stage in config["order"]:
        x = stages[stage](x, *(numbers[name] for name in names if name.startswith(stage)))
        ours[f"out/stage/{stage}"] = to_nchw(x)

    def loss(images):
        augmented = diff_augment.augment(images, numbers, config["policy"])
        return (to_nhwc(arrays["in/cotangent"]) * augmented).sum(), augmented

    gradient, augmented = jax.grad(loss, has_aux=True)(images)
    return ours | {"out/images": to_nchw(augmented), "grad/in/images": to_nchw(gradient)}


@compiled
def run_kd_dlgan(config, arrays):
    given = {name.removeprefix("in/"): jnp.asarray(array) for name, array in arrays.items()}

    def loss(real, fake):
        clip = {"real": given["clip_real"], "fake": given["clip_fake"]}
        real_term, fake_term = gan_losses.aggregated_loss(clip["real"], clip["fake"], real, fake)
        terms = {
            "aggregated_real": real_term,
            "aggregated_fake": fake_term,
            "correlated_real": gan_losses.correlated_loss(clip["real"], real, given["text"]),
            "correlated_fake": gan_losses.correlated_loss(clip["fake"], fake, given["text"]),
        }
        return 10 * sum(terms.values()), terms

    gradients, terms = jax.grad(loss, (0, 1), has_aux=True)(given["feature_real"], given["feature_fake"])
    terms["diversity"] = gan_losses.diversity(given["clip_fake"], given["text"], given["permutation"])
    ours = {f"out/{name}": value for name, value in terms.items()}
    return ours | {"grad/in/feature_real": gradients[0], "grad/in/feature_fake": gradients[1]}


@compiled
def run_vkd_term(config, arrays):
    halves = ("real", "fake")
    projector = vkd.Projector(config["teacher_dim"], config["map"])
    params = {"raw": jnp.asarray(arrays["param/original"])}
    state = {"base": jnp.asarray(arrays["param/base"])}
    if config["map"] == "householder":
        state["signs"] = jnp.trunc(jnp.diagonal(params["raw"]))
    targets = gan_losses.teacher_targets(
        *(jnp.asarray(arrays[f"in/teacher_{half}"]) for half in halves),
        norm=config.get("norm", "whiten"),
        root=config["root"],
        epsilon=config["epsilon"],
        scope=config.get("scope", "each"),
    )

    def project(params, rows):
        return projector.apply({"params": {"projector": params}, "state": {"projector": state}}, rows)

    def loss(params, pooled):
        projected = [project(params, rows) for rows in pooled]
        pairs = zip(projected, targets, strict=True)
        losses = [gan_losses.feature_distance(rows, target, config["distance"]) for rows, target in pairs]
        return sum(losses), (projected, losses)

    pooled = [jnp.asarray(arrays[f"in/pooled_{half}"]) for half in halves]
    gradient = jax.value_and_grad(loss, (0, 1), has_aux=True)
    (total, (projected, losses)), (of_params, of_pooled) = gradient(params, pooled)
    ours = {"out/loss": total, "grad/original": of_params["raw"]}
    ours["out/weight"] = project(params, jnp.eye(config["student_dim"])).T
    for i, half in enumerate(halves):
        ours |= {f"out/whitened_{half}": targets[i], f"out/projected_{half}": projected[i]}
        ours |= {f"out/loss_{half}": losses[i], f"grad/in/pooled_{half}": of_pooled[i]}
    return ours


def run_frechet(config, arrays):
    moments = frechet.Moments.from_features(arrays["in/generated"])
    return {
        "out/mean_generated": moments.mean,
        "out/covariance_generated": moments.covariance,
        "out/distance": frechet.frechet_distance(arrays["in/generated"], arrays["in/real"]),
    }


def run_inception_score(config, arrays):
    mean, deviation = frechet.inception_score(arrays["in/probabilities"], config["splits"])
    return {"out/mean": mean, "out/std": deviation}


def run_kernel_distance(config, arrays):
    return {"out/distance": frechet.kernel_distance(arrays["in/generated"], arrays["in/real"])}


def run_metric_protocol(config, arrays):
    """The fixture's networks read pixels in the order channel, row, column."""
    levels = frechet.to_levels(arrays["in/images"])
    pixels = levels.reshape(len(levels), -1) / 255
    exponents = np.exp(pixels @ arrays["param/softmax.weight"].astype(np.float64))
    probabilities = exponents / exponents.sum(axis=1, keepdims=True)
    mean, deviation = frechet.inception_score(probabilities, config["splits"])
    generated = frechet.Moments.from_features(pixels @ arrays["param/features.weight"].astype(np.float64))
    real = frechet.Moments(*(arrays[f"in/real_{name}"].astype(np.float64) for name in ("mean", "covariance")))
    distance = frechet.moments_distance(generated, real)
    return {"out/uint8": levels, "out/is_mean": mean, "out/is_std": deviation, "out/distance": distance}


def run_clip(config, arrays):
    """The network of a file with the names of CLIP's complete state dict."""
    names = {"dim": "width", "depth": "layers", "heads": "heads", "patch_size": "patch", "image_size": "size"}
    sizes = {ours: config[theirs] for ours, theirs in {**names, "output_dim": "output_dim"}.items()}
    network = clip.build(ConfigDict(defaults(clip.OPTIONS, dtype="float32", **sizes)), num_classes=0)
    images = to_nhwc(arrays["in/images"])
    shapes = jax.eval_shape(network.init, jax.random.key(0), images)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "clip.npz"
        state = {name.replace("param/", "visual."): array for name, array in arrays.items() if "param/" in name}
        np.savez(path, **state, logit_scale=np.ones(1, np.float32))
        variables = weights.load_network(path, shapes, "teacher.weights", clip.torch_name)
    return {"out/features": jax.jit(network.apply)(variables, images)[1]["features"]}


def run_subset(config, arrays):
    ours = {}
    for i, case in enumerate(config["cases"]):
        (n,) = (number for name, number in case.items() if name not in ("size", "seed"))
        ours[f"out/indices_{i}"] = class_order.random_subset(n, case["size"], case["seed"])
    return ours


RUNNERS = {
    "gan_spectral_norm": run_spectral_norm,
    "gan_generator": run_generator,
    "gan_discriminator": run_discriminator,
    "gan_hinge": run_hinge,
    "gan_lecam": run_lecam,
    "gan_ema": run_running_mean,
    "gan_diffaugment": run_diff_augment,
    "gan_kd_dlgan_losses": run_kd_dlgan,
    "gan_vkd_term": run_vkd_term,
    "gan_frechet": run_frechet,
    "gan_inception_score": run_inception_score,
    "gan_kernel_distance": run_kernel_distance,
    "gan_metric_protocol": run_metric_protocol,
    "gan_subset": run_subset,
    "gan_clip_visual": run_clip,
}
