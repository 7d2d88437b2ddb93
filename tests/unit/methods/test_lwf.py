"""LwF: distillation from the previous network, and the network as a teacher."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax import config as configs
from cdl_jax.errors import UserError
from cdl_jax.methods import lwf
from cdl_jax.methods.base import StreamInfo, join, split
from cdl_jax.models.modules.conv import apply
from tests.support.contexts import context
from tests.support.manual_steps import quick

INFO = StreamInfo(5, (2, 1, 2))


def build(info=INFO, **changes):
    config = configs.default("lwf", data="glyph_mini", network="slim_resnet18")
    config.network.update(width=2, depths=(1, 1), image_size=8)
    config.lwf.update(changes)
    config.train.update(epochs=3, batch_size=6)
    configs.check(config)
    return lwf.build(config, info)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return {"images": jnp.asarray(rng.normal(size=(6, 8, 8, 3)), jnp.float32), "labels": jnp.array([3, 4, 3, 0, 1, 2])}


@pytest.fixture(scope="module")
def variables():
    """Variables of a network that differs from the previous one."""
    current, previous = (build().init(jax.random.key(seed))["network"] for seed in (0, 1))
    return {"network": current, "previous": previous}


def metrics_of(method, variables, data, step_context):
    loss = lambda v, b: method.loss(v, b, step_context)[1].metrics  # noqa: E731
    return {name: float(value) for name, value in quick(loss)(variables, data).items()}


@pytest.mark.parametrize(("active", "columns"), [("all_seen", [0, 1, 2]), ("last", [2, 3])])
@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_loss_distills_the_previous_network_over_earlier_classes(variables, data, active, columns, statistics):
    info, step_context = INFO, context(3, 5, task=2)
    if active == "last":  # a softmax over the one class of INFO's second task has no gradient, and is refused
        info, step_context = StreamInfo(5, (2, 2, 1)), context(4, 5, task=2)
    method = build(info, alpha=1.5, temperature=2.0, lwf_active=active, previous_bn=statistics)
    metrics = metrics_of(method, variables, data, step_context)
    key, use_batch_statistics = jax.random.key(0), statistics == "batch"
    (previous, _), _ = apply(method.backbone, variables["previous"], data["images"], use_batch_statistics, key)
    (current, _), _ = apply(method.backbone, variables["network"], data["images"], True, key)
    p, q = (jax.nn.softmax(z[:, jnp.array(columns)] / 2.0) for z in (previous, current))
    distillation = float((p * (jnp.log(p) - jnp.log(q))).sum(axis=1).mean())
    cross_entropy = -float(jnp.take_along_axis(jax.nn.log_softmax(current), data["labels"][:, None], axis=1).mean())
    assert metrics["previous_loss"] == pytest.approx(distillation, rel=1e-4, abs=1e-7)
    assert metrics["class_loss"] == pytest.approx(cross_entropy, rel=1e-4)
    assert metrics["loss"] == pytest.approx(cross_entropy + 1.5 * distillation, rel=1e-4)
    assert distillation > 1e-3


def test_first_task_has_no_distillation_and_ends_with_a_copy_of_the_network(variables, data):
    method = build()
    assert metrics_of(method, variables, data, context(0, 2))["previous_loss"] == 0
    (update,) = method.phases[0].updates
    step_context = context(0, 2)
    trained, rest = split(variables, update.trainable)
    assert set(trained) == {"network"} and set(trained["network"]) == {"params"}
    gradients = quick(jax.grad(lambda t: update.loss(join(rest, t), data, step_context)[0]))(trained)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))
    after = method.end_task(variables, step_context)
    for part in ("network", "previous"):
        jax.tree.map(np.testing.assert_array_equal, after[part], variables["network"])
    # Equal networks have no distillation loss, if both use the statistics of the batch.
    equal = metrics_of(replace(method, options=build(previous_bn="batch").options), after, data, context(3, 5, task=2))
    assert equal["previous_loss"] == pytest.approx(0, abs=1e-6)


def test_teacher_outputs_use_running_or_batch_statistics(variables, data):
    method, step_context = build(), context(0, 2)
    for batch in (False, True):
        (logits, _), _ = apply(method.backbone, variables["network"], data["images"], batch, step_context.key)
        outputs = method.teacher_outputs("network", variables, data["images"], step_context, use_batch_statistics=batch)
        np.testing.assert_allclose(outputs["logits"], logits, atol=1e-6)
        assert outputs["features"].shape == (6, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lwf_active": "lst"}, "lwf.lwf_active='lst': use 'all_seen' or 'last'"),
        ({"previous_bn": "btch"}, "lwf.previous_bn='btch': use 'running' or 'batch'"),
        ({"temperature": 0.0}, "lwf.temperature=0.0"),
        ({"alpha": -1.0}, "alpha=-1.0"),
        ({"label_smoothing": 1.0}, "lwf.label_smoothing=1.0 must lie in [0, 1)"),
        ({"replay": 10, "classes": "current"}, "lwf.classes='current' excludes the classes of replayed images"),
    ],
)
def test_invalid_options_give_a_message_of_one_line(changes, message):
    with pytest.raises(UserError) as error:
        build(**changes)
    assert message in str(error.value) and "\n" not in str(error.value)
