"""A loss that is 0 for all weights is refused before training, and the message names the option to change."""

import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax import config as base
from cdl_jax.data import stream
from cdl_jax.errors import UserError
from cdl_jax.losses import cross_entropy, kl_divergence
from cdl_jax.training.experiment import Experiment
from tests.end_to_end import tiny

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
    memory = {"replay": 40} if method == "eeil" else {}
    if method != "eeil":  # which spans "seen" or "all" only
        assert f"say config.{method}.classes='seen', or " in refusal(
            method, (method, {"classes": "current", "replay": 0})
        )
    for classes in ("seen", "all"):
        chosen = (method, {"classes": classes, **memory})
        build_experiment(method, chosen, sizes=(1, 1, 2))
        assert refusal(method, chosen, sizes=(1,)).startswith("the stream has one class, ")


def test_methods_without_a_softmax_accept_tasks_of_one_class():
    config = base.default("nearest_mean", data="glyph_mini", network="mini_student")
    config.data.num_tasks = 20
    Experiment.build(config, stream.load(config.data, 0))
    build_experiment("vkd", ("vkd", {"label_loss": "binary"}), ("mixing", {"probability": 0.0}))


@pytest.mark.parametrize(("method", "key", "more"), [("lwf", "lwf_active", {}), ("eeil", "active", {"replay": 40})])
def test_distillation_from_the_previous_network_needs_two_classes(method, key, more):
    last = {key: "last", "classes": "all", **more}
    message = refusal(method, (method, last), sizes=(2, 1, 1))
    assert message.startswith(f"{method}.{key}='last' preserves one class after task 1")
    build_experiment(method, (method, last), sizes=(2, 2, 1))
    build_experiment(method, (method, {**last, key: "all_seen"}), sizes=(2, 1, 1))
    build_experiment(method, (method, {**last, "alpha": 0.0}), sizes=(2, 1, 1))


def test_loss_weights_that_are_all_zero_are_refused():
    off = {"feature_weight": 0.0, "logit_weight": 0.0}
    build_experiment("vkd", ("distill", off), sizes=(10, 10))
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
    with pytest.raises(UserError, match="distill.target_weight=0: task 0 has two classes, so NCKD spans one class"):
        dkd((2,) * 10, target_weight=0.0)
    with pytest.raises(UserError, match="nothing is distilled; raise one of them, or set distill.alpha=0"):
        dkd((10, 10), target_weight=0.0, other_weight=0.0)
