"""Losses of 0 for all weights: refused before training, with the option to change."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from cdl_jax import config as base
from cdl_jax import plugins
from cdl_jax.data import stream
from cdl_jax.distill.base import NetworkSpec
from cdl_jax.errors import UserError
from cdl_jax.losses import cross_entropy, kl_divergence
from cdl_jax.training.experiment import Experiment
from tests.end_to_end import tiny
from tests.support.sections import checked

CURRENT = ("cdl", "okddip", "dml", "one", "cl_ilr", "individual", "kd", "vkd")
CHOSEN = ("supervised", "lwf", "eeil", "dkt")


def build_experiment(method, *changes, sizes=(1,) * 20):
    """The experiment of a method with small networks on tasks of these sizes."""
    if method == "cdl":
        config = tiny.get_config()
    else:
        networks = {"network": "resnet20"} | ({"teacher": "resnet20"} if method in ("kd", "vkd") else {})
        if method == "vkd":
            networks["network"] = "deit_ti_conv"
        config = base.default(method, data="glyph_mini", **networks)
        config.train.update(epochs=1, batch_size=16)
        for section in ("network", "student", "teacher"):
            if section in config and "widths" in config[section]:
                config[section].update(depths=(1, 1, 1), widths=(8, 8, 8))
            if section in config and "image_size" in config[section]:
                config[section].image_size = 32
        if "teacher" in config:
            config.teacher.weights = "random"
    config.data.update(num_tasks=0, task_sizes=sizes, max_train_per_class=16, max_test_per_class=4)
    config.data.class_order = tuple(range(sum(sizes)))
    for section, options in changes:
        config[section].update(options)
    return Experiment.build(config, stream.load(config.data, 0))


def refusal(*arguments, **options):
    with pytest.raises(UserError) as caught:
        build_experiment(*arguments, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_losses_of_a_softmax_over_one_class_are_zero():
    logits, mask = jnp.asarray(np.random.default_rng(0).normal(size=(8, 5)), jnp.float32), jnp.arange(5) == 3
    assert float(cross_entropy(logits, jnp.full(8, 3), mask)) == 0
    assert float(kl_divergence(logits, -logits, mask, 2.0)) == 0


@pytest.mark.parametrize("method", CURRENT)
@pytest.mark.parametrize(("sizes", "index"), [((1,) * 20, 0), ((3, 1, 2), 1)], ids=["each", "one"])
def test_a_task_of_one_class_needs_a_softmax_over_more_classes(method, sizes, index):
    message = refusal(method, sizes=sizes)
    assert message.startswith(f"task {index} has one class, and the softmax of method {method!r} spans the classes of")
    assert "nothing is learned; choose data.num_tasks or data.task_sizes" in message


@pytest.mark.parametrize("method", CHOSEN)
def test_message_names_the_option_that_makes_the_loss_trainable(method):
    off = {"alpha": 0.0} if method in ("lwf", "eeil") else {}  # else task 1 preserves one class
    memory = {**off, **({"replay": 40} if method == "eeil" else {})}
    if method != "eeil":  # which spans "seen" or "all" only
        for sizes, classes in (((1,) * 20, "all"), ((2, 1), "seen")):
            message = refusal(method, (method, {"classes": "current", "replay": 0, **off}), sizes=sizes)
            assert f"set config.{method}.classes={classes!r}, or " in message
    for classes, sizes in (("seen", (2, 1, 1)), ("all", (1, 1, 2))):
        chosen = (method, {"classes": classes, **memory})
        build_experiment(method, chosen, sizes=sizes)
        assert refusal(method, chosen, sizes=(1,)).startswith("the stream has one class, ")


@pytest.mark.parametrize("method", CHOSEN)
def test_the_classes_seen_in_a_first_task_of_one_class_are_refused(method):
    """Replay does not help: the first task has no memory."""
    message = refusal(method, (method, {"classes": "seen", "replay": 40}), sizes=(1, 2, 2))
    if method in ("lwf", "eeil"):  # whose distillation is refused first
        assert "preserves one class after task 0" in message and "two classes in task 0" in message
        message = refusal(method, (method, {"classes": "seen", "replay": 40, "alpha": 0.0}), sizes=(1, 2, 2))
    assert message.startswith(f"task 0 has one class, and the softmax of method {method!r} spans the classes seen so")
    assert f"set config.{method}.classes='all', or choose data.num_tasks or data.task_sizes for at least" in message


def test_methods_without_a_softmax_accept_tasks_of_one_class():
    config = base.default("nearest_mean", data="glyph_mini", network="mini_student")
    config.data.num_tasks = 20
    Experiment.build(config, stream.load(config.data, 0))
    build_experiment("vkd", ("vkd", {"label_loss": "binary"}), ("mixing", {"probability": 0.0, "smoothing": 0.0}))


@pytest.mark.parametrize(("method", "key", "more"), [("lwf", "lwf_active", {}), ("eeil", "active", {"replay": 40})])
def test_distillation_from_the_previous_network_needs_two_classes(method, key, more):
    last = {key: "last", "classes": "all", **more}
    message = refusal(method, (method, last), sizes=(2, 1, 1))
    assert message.startswith(f"{method}.{key}='last' preserves one class after task 1")
    build_experiment(method, (method, last), sizes=(2, 2, 1))
    build_experiment(method, (method, {**last, key: "all_seen"}), sizes=(2, 1, 1))
    assert f"set {method}.{key}='all_seen', or {method}.alpha=0" in message
    build_experiment(method, (method, {**last, "alpha": 0.0}), sizes=(2, 1, 1))


@pytest.mark.parametrize(("method", "key", "more"), [("lwf", "lwf_active", {}), ("eeil", "active", {"replay": 40})])
@pytest.mark.parametrize("kind", ["all_seen", "last"])
def test_distillation_after_a_first_task_of_one_class_is_refused(method, key, more, kind):
    options = {key: kind, "classes": "all", **more}
    message = refusal(method, (method, options), sizes=(1, 2, 2))
    assert message.startswith(f"{method}.{key}={kind!r} preserves one class after task 0, ")
    assert f"choose data.task_sizes with two classes in task 0, or {method}.alpha=0" in message
    build_experiment(method, (method, {**options, "alpha": 0.0}), sizes=(1, 2, 2))
    if method == "eeil":  # whose softmax over the images of a batch is not constant
        build_experiment(method, (method, {**options, "softmax_over": "batch"}), sizes=(1, 2, 2))


def test_softmax_over_the_images_of_a_batch_needs_two_images():
    one = ("train", {"batch_size": 1})
    over_batch = {"softmax_over": "batch", "replay": 20}
    message = refusal("eeil", one, ("eeil", over_batch), sizes=(10, 10))
    assert message.startswith("eeil.softmax_over='batch' with train.batch_size=1: ")
    assert "set train.batch_size of at least 2, or eeil.softmax_over='classes'" in message
    build_experiment("eeil", one, ("eeil", {**over_batch, "softmax_over": "classes"}), sizes=(10, 10))
    build_experiment("eeil", ("train", {"batch_size": 2}), ("eeil", over_batch), sizes=(10, 10))
    # A batch of training has a replayed image too.
    build_experiment("eeil", one, ("eeil", {**over_batch, "finetune_epochs": 0}), sizes=(10, 10))


METHODS_WITH_TEMPERATURE = {
    "cdl": "distill", "vkd": "distill", "kd": "kd", "okddip": "okddip", "dml": "dml", "one": "one",
    "cl_ilr": "cl_ilr", "dkt": "dkt", "lwf": "lwf", "eeil": "eeil",
}  # fmt: skip


@pytest.mark.parametrize("method", METHODS_WITH_TEMPERATURE)
@pytest.mark.parametrize("temperature", [0.0, 1e-30, 0.0099, 1001.0, 1e9])
def test_temperatures_without_a_gradient_in_float32_are_refused(method, temperature):
    section = METHODS_WITH_TEMPERATURE[method]
    message = refusal(method, (section, {"temperature": temperature}), sizes=(10, 10))
    assert message.startswith(f"config.{section}.temperature={temperature} must lie in [0.01, 1000]: ")


@pytest.mark.parametrize("distill", plugins.list_plugins("distill"))
def test_every_scheme_has_a_range_of_temperatures(distill):
    scheme = plugins.load_plugin("distill", distill)
    if "temperature" not in scheme.OPTIONS:
        assert distill in ("mse_logits", "none", "weighted_sum")  # that of a sum is its terms'
        return
    network = NetworkSpec(8, 2, 5, 4, 2, None, ConfigDict({"length": 2, "pool": 4}), task_sizes=(2, 2))
    for temperature in (1e-30, 1e9):
        with pytest.raises(UserError, match="^config.distill.temperature=.* must lie in .0.01, 1000.: "):
            scheme.build(checked("distill", scheme.OPTIONS, temperature=temperature), network, network)


def test_divergences_at_the_bounds_of_the_temperature_have_gradients():
    """And beyond them they have none: the loss is exactly 0, or its gradient is."""
    logits = jnp.asarray(np.random.default_rng(0).normal(size=(8, 5)), jnp.float32)
    mask = jnp.ones(5, bool)

    def gradient(temperature, scale=1.0):
        value = lambda z: temperature**2 * kl_divergence(z, -scale * logits, mask, temperature)  # noqa: E731
        return np.asarray(jax.grad(value)(scale * logits))

    assert np.abs(gradient(0.01, scale=0.01)).max() > 1e-4
    mean = np.asarray(logits - logits.mean(axis=1, keepdims=True))
    np.testing.assert_allclose(
        gradient(1000.0), 2 * mean / 5 / 8, atol=1e-3
    )  # of the mean squared error, Hinton et al.
    assert float(kl_divergence(logits, -logits, mask, 1e9)) == 0


def test_loss_weights_that_are_all_zero_are_refused():
    off = {"feature_weight": 0.0, "logit_weight": 0.0}
    build_experiment("vkd", ("distill", off), sizes=(10, 10))
    binary = ("vkd", {"label_loss": "binary"}), ("mixing", {"probability": 0.0, "smoothing": 0.0})
    logits_only = {"feature_weight": 0.0, "label_weight": 0.0}
    for classes, sizes, task in (("current", (2, 1, 1), 1), ("seen", (1, 2, 2), 0)):
        message = refusal("vkd", *binary, ("distill", {**logits_only, "classes": classes}), sizes=sizes)
        assert message.startswith("distill.feature_weight=0 and distill.label_weight=0: ")
        assert f"the one class of task {task}, so it is 0 whatever the weights" in message
        for key in logits_only:
            build_experiment("vkd", *binary, ("distill", {**logits_only, key: 1.0, "classes": classes}), sizes=sizes)
    build_experiment("vkd", *binary, ("distill", {**logits_only, "classes": "seen"}), sizes=(2, 1, 1))
    message = refusal("vkd", ("distill", {**off, "label_weight": 0.0}), sizes=(10, 10))
    assert message.startswith("distill.feature_weight, logit_weight and label_weight are 0: ")


def dkd(sizes, **options):
    config = tiny.get_config("distill=dkd")
    config.distill.update(options)
    config.data.update(num_tasks=0, task_sizes=sizes)
    return Experiment.build(config, stream.load(config.data, 0))


def test_dkd_needs_a_part_that_is_not_constant():
    dkd((10, 10), target_weight=0.0)
    dkd((2,) * 10)
    dkd((2,) * 10, target_weight=0.0, classes="seen")
    dkd((10, 10), target_weight=0.0, other_weight=0.0, alpha=0.0)
    with pytest.raises(
        UserError, match="distill.target_weight=0: task 0 has two classes, so NCKD spans one class"
    ) as e:
        dkd((2,) * 10, target_weight=0.0)
    assert "'seen'" not in str(e.value)  # where the first task has two classes, NCKD spans one of them too
    with pytest.raises(UserError, match="raise distill.target_weight, or set distill.classes='seen'$"):
        dkd((3, 2, 15), target_weight=0.0)
    dkd((3, 2, 15), target_weight=0.0, alpha=1.0, classes="seen")
    with pytest.raises(
        UserError, match="^distill.target_weight=0 with distill.alpha=1: task 0 has two classes, so NCKD"
    ):
        dkd((2,) * 10, target_weight=0.0, alpha=1.0, classes="seen")
    with pytest.raises(UserError, match="nothing is distilled; raise one of them, or set distill.alpha=0"):
        dkd((10, 10), target_weight=0.0, other_weight=0.0)
