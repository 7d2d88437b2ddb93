"""Methods of one network with replay: phases, and classes of the cross-entropy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax import config as configs
from cdl_jax.errors import UserError
from cdl_jax.losses import cross_entropy
from cdl_jax.methods import supervised
from cdl_jax.methods.base import Replay, StreamInfo
from cdl_jax.models.modules.conv import apply
from tests.support.contexts import context

INFO = StreamInfo(4, (2, 2))


def build(**changes):
    config = configs.default("supervised", data="glyph_mini", network="slim_resnet18")
    config.network.update(width=2, depths=(1, 1), image_size=8)
    config.supervised.update(changes)
    config.train.update(epochs=3, batch_size=6)
    configs.check(config)
    return supervised.build(config, INFO)


def test_replayed_images_join_the_batches_of_later_tasks():
    first, later = build(replay=10, classes="seen").phases
    assert (first.name, first.replay, first.epochs_of(0), first.epochs_of(1)) == ("network", None, 3, 0)
    assert (later.name, later.epochs_of(0), later.epochs_of(1)) == ("network_replay", 0, 3)
    assert later.replay == Replay(capacity=10, batch=6, balance="experience")
    (with_options,) = build(replay=10, replay_batch=2, replay_balance="class", classes="all").phases[1:]
    assert with_options.replay == Replay(10, 2, "class")
    (only,) = build().phases
    assert only.tasks == "all" and only.replay is None


@pytest.mark.parametrize(("classes", "columns"), [("current", [2, 3]), ("seen", [0, 1, 2, 3]), ("all", [0, 1, 2, 3])])
def test_cross_entropy_spans_the_classes_of_the_option(classes, columns):
    method, rng = build(classes=classes), np.random.default_rng(0)
    variables = method.init(jax.random.key(0))
    images, labels = jnp.asarray(rng.normal(size=(5, 8, 8, 3)), jnp.float32), jnp.array([2, 3, 2, 2, 3])
    ((logits, _), _) = apply(method.backbone, variables["network"], images, True, jax.random.key(1))
    mask = jnp.isin(jnp.arange(4), jnp.array(columns))
    loss, outcome = method.loss(variables, {"images": images, "labels": labels}, context(2, 4, task=1))
    assert float(loss) == pytest.approx(float(cross_entropy(logits, labels, mask)), rel=1e-5)
    assert set(outcome.variables["network"]) == {"batch_stats"}
    assert method.predict_over == ("all" if classes == "all" else "seen")
    early = getattr(context(0, 2), classes)(4)
    assert early.tolist() == [True, True, *[classes == "all"] * 2]


def test_label_smoothing_moves_a_share_of_the_label_to_the_classes_of_the_softmax():
    method, rng = build(classes="current", label_smoothing=0.2), np.random.default_rng(0)
    variables = method.init(jax.random.key(0))
    images, labels = jnp.asarray(rng.normal(size=(5, 8, 8, 3)), jnp.float32), np.array([2, 3, 2, 2, 3])
    ((logits, _), _) = apply(method.backbone, variables["network"], images, True, jax.random.key(1))
    current = np.asarray(logits, np.float64)[:, 2:]
    log_p = current - np.log(np.exp(current).sum(axis=1, keepdims=True))
    target = 0.8 * np.eye(2)[labels - 2] + 0.2 / 2
    loss, _ = method.loss(variables, {"images": images, "labels": jnp.asarray(labels)}, context(2, 4, task=1))
    assert float(loss) == pytest.approx(-(target * log_p).sum(axis=1).mean(), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"replay": 5}, "supervised.classes='current' excludes the classes of replayed images"),
        ({"classes": "sene"}, "supervised.classes='sene': use 'current', 'seen' or 'all'"),
        ({"label_smoothing": 1.0}, "supervised.label_smoothing=1.0 must lie in [0, 1)"),
        ({"replay": -1}, "supervised.replay=-1 must not be negative"),
        ({"replay_balance": "task"}, "supervised.replay_balance='task'"),
    ],
)
def test_invalid_options_give_a_message_of_one_line(changes, message):
    with pytest.raises(UserError) as error:
        build(**changes)
    assert message in str(error.value) and "\n" not in str(error.value)
