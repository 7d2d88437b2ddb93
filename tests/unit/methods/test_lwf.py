"""Learning without Forgetting: what holds on to what, in two tasks; and a network that teaches as in training."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax import config as configs
from cdl_jax.errors import UserError
from cdl_jax.methods import lwf
from cdl_jax.methods.base import StreamInfo
from cdl_jax.models.modules.conv import apply
from cdl_jax.training import steps as trainer
from tests.support.contexts import context
from tests.support.manual_steps import quick

INFO = StreamInfo(5, (2, 1, 2))


def build(info=INFO, **changes):
    config = configs.default("lwf", data="glyph_mini", network="slim_resnet18")
    config.network.update(width=2, depths=(1, 1), image_size=8)
    config.lwf.update(changes)
    config.train.update(epochs=3, batch_size=6)
    return lwf.build(config, info)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    return {"images": jnp.asarray(rng.normal(size=(6, 8, 8, 3)), jnp.float32), "labels": jnp.array([3, 4, 3, 0, 1, 2])}


@pytest.fixture(scope="module")
def variables():
    """The network has moved on from what it was after the task before."""
    one, other = (build().init(jax.random.key(seed)) for seed in (0, 1))
    return {"network": one["network"], "previous": other["network"]}


def told(method, variables, data, place):
    loss = lambda v, b: method.loss(v, b, place)[1].metrics  # noqa: E731
    return {name: float(value) for name, value in quick(loss)(variables, data).items()}


@pytest.mark.parametrize(("active", "columns"), [("all_seen", [0, 1, 2]), ("last", [2, 3])])
@pytest.mark.parametrize("statistics", ["running", "batch"])
def test_what_was_learnt_before_is_held_on_to(variables, data, active, columns, statistics):
    info, place = INFO, context(3, 5, task=2)
    if active == "last":  # a softmax over the one class of INFO's second task has no gradient, and is refused
        info, place = StreamInfo(5, (2, 2, 1)), context(4, 5, task=2)
    method = build(info, alpha=1.5, temperature=2.0, lwf_active=active, previous_bn=statistics)
    found = told(method, variables, data, place)
    key, use_batch_statistics = jax.random.key(0), statistics == "batch"
    (before, _), _ = apply(method.alone.backbone, variables["previous"], data["images"], use_batch_statistics, key)
    (now, _), _ = apply(method.alone.backbone, variables["network"], data["images"], True, key)
    p, q = (jax.nn.softmax(z[:, jnp.array(columns)] / 2.0) for z in (before, now))
    held = float((p * (jnp.log(p) - jnp.log(q))).sum(axis=1).mean())
    true = -float(jnp.take_along_axis(jax.nn.log_softmax(now), data["labels"][:, None], axis=1).mean())
    assert found["previous_loss"] == pytest.approx(held, rel=1e-4, abs=1e-7)
    assert found["class_loss"] == pytest.approx(true, rel=1e-4)
    assert found["loss"] == pytest.approx(true + 1.5 * held, rel=1e-4)
    assert held > 1e-3


def test_the_first_task_holds_on_to_nothing_and_then_the_network_is_kept(variables, data):
    method = build()
    assert told(method, variables, data, context(0, 2))["previous_loss"] == 0
    (update,) = method.phases[0].updates
    place = context(0, 2)
    trained, rest = trainer.split(variables, update.trainable)
    assert set(trained) == {"network"} and set(trained["network"]) == {"params"}
    gradients = quick(jax.grad(lambda t: update.loss(trainer.join(rest, t), data, place)[0]))(trained)
    assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(gradients))
    after = method.end_task(variables, place)
    for part in ("network", "previous"):
        jax.tree.map(np.testing.assert_array_equal, after[part], variables["network"])
    # A network that said the same before is pulled nowhere; in training the batch's statistics normalise it too.
    same = told(replace(method, options=build(previous_bn="batch").options), after, data, context(3, 5, task=2))
    assert same["previous_loss"] == pytest.approx(0, abs=1e-6)


def test_it_tells_as_tested_or_as_in_training(variables, data):
    method, place = build(), context(0, 2)
    for batch in (False, True):
        (logits, _), _ = apply(method.alone.backbone, variables["network"], data["images"], batch, place.key)
        said = method.teacher_outputs("network", variables, data["images"], place, use_batch_statistics=batch)
        np.testing.assert_allclose(said["logits"], logits, atol=1e-6)
        assert said["features"].shape == (6, 4)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lwf_active": "lst"}, "did you mean 'last'"),
        ({"previous_bn": "btch"}, "did you mean 'batch'"),
        ({"temperature": 0.0}, "lwf.temperature=0.0"),
        ({"alpha": -1.0}, "alpha=-1.0"),
        ({"replay": 10, "classes": "current"}, "lwf.classes='current' excludes the classes of replayed images"),
    ],
)
def test_what_makes_no_sense_is_told_in_one_line(changes, message):
    with pytest.raises(UserError) as error:
        build(**changes)
    assert message in str(error.value) and "\n" not in str(error.value)
