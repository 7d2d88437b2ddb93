"""Options that do not fit the method are refused in one line."""

from types import SimpleNamespace
from unittest import mock

import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from cdl_jax import config as configs
from cdl_jax import optim, plugins
from cdl_jax.errors import UserError
from cdl_jax.methods.base import Generates, StreamInfo
from cdl_jax.options import defaults
from cdl_jax.training import compatibility

INFO = StreamInfo(4, (2, 2))
DOMAINS = StreamInfo(2, (2, 2), first_labels=(0, 0), domains=("day", "night"))
DECAY = {"optim.weight_decay": 1e-4, "optim.name": "adam"}


def stream_of(labels):
    return SimpleNamespace(test=SimpleNamespace(labels=np.array(labels)))


def check(method, info=INFO, **changes):
    choices = {"network": "slim_resnet18"} if method == "dkt" else {}
    choices |= {"learner": changes.pop("learner")} if "learner" in changes else {}
    config = configs.default(method, data="glyph_mini", **choices)
    config.update_from_flattened_dict(changes)
    built = plugins.load_plugin("methods", method).build(config, info)
    compatibility.check_method(config, built, info, ("a", "b", "c", "d"))
    compatibility.check_new_run(config, built, info, None)


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("dkt", {"dkt.num_learners": 3, "peer_devices": 2}, "config.peer_devices=2: dkt divides 3 networks"),
        ("dkt", {"peer_devices": 2, "dkt.update_order": "sequential"}, "config.peer_devices=2: dkt divides 1 networks"),
        ("dkt", {"peer_devices": 2, "seeds": (0, 1)}, "config.seeds and config.peer_devices cannot be combined"),
        ("dkt", {"dkt.update_order": "sequential", "train.early_stopping.patience": 3}, "has 2 phases a task here"),
        ("cdl", {"train.early_stopping.patience": 3}, "method 'cdl' has 2 phases a task here"),
        ("cdl", {"optim.weight_decay": 1e-4}, "optim.name='adam' normalizes"),
        ("dkt", {"dkt.joins": (0, 1), "optim.weight_decay": 1e-4}, "set optim.weight_decay=0"),
        ("dkt", {"dkt.joins": (0, 1), "dkt.replay": 8}, "dkt.joins=(0, 1) with dkt.replay=8: the memory of a learner"),
        ("dkt", {"dkt.leaves": (2, 1), "optim.weight_decay": 1e-4}, "set optim.weight_decay=0"),
        ("cdl", {"optim.weight_decay": 1e-4, "optim.name": "rmsprop"}, "optim.name='rmsprop' normalizes"),
        ("supervised", DECAY | {"optim.no_decay": ("head", "prompts")}, "loss spans the classes of the current task"),
        ("cdl", DECAY | {"learner": "dualprompt", "info": DOMAINS}, "pool has rows that no image selects"),
        ("vkd", {"vkd.label_loss": "binary"}, "set mixing.smoothing=0"),
        ("vkd", DECAY | {"vkd.label_loss": "binary"}, "loss spans the classes of the current task"),
        ("cdl", {"data.blurry_share": 0.5}, "data.blurry_share=0.5 belongs to data.kind='blurry'"),
        (
            "cdl",
            {"data.kind": "domain", "data.blurry_sizes": "random"},
            "data.blurry_sizes='random' belongs to",
        ),
        (
            "cdl",
            {"learner": "lae", "optim.accumulate": 2},
            "the moving average of learner 'lae' would have",
        ),
    ],
)
def test_options_that_do_not_fit_the_method_are_refused(method, changes, message):
    with pytest.raises(UserError) as error:
        check(method, **changes)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_options_that_fit_are_accepted():
    check("dkt", **{"dkt.num_learners": 4, "peer_devices": 2})
    check("dkt", **{"train.early_stopping.patience": 3})
    check("cdl", seeds=(0, 1))
    for name in ("adamw", "sgd"):
        check("cdl", **{"optim.weight_decay": 1e-4, "optim.name": name})
    check("cdl", **DECAY, learner="fine_tuning", info=DOMAINS)


@pytest.mark.parametrize("name", ["adam", "amsgrad", "rmsprop", "adamw", "sgd"])
def test_weight_decay_is_refused_where_it_makes_full_steps_without_a_gradient(name):
    options = ConfigDict(defaults(optim.OPTIONS, name=name, weight_decay=1e-4, learning_rate=5e-3, momentum=0.0))
    optimizer = optim.build(options, 1)
    params = {"rows": jnp.ones((2, 3))}
    direction, _ = optimizer.transform.update({"rows": jnp.zeros((2, 3))}, optimizer.transform.init(params), params)
    is_full = float(direction["rows"].min()) > 0.5
    assert is_full == (name in optim.NORMALIZED)


@pytest.mark.parametrize(
    ("labels", "score", "generated", "message"),
    [
        ([0, 0, 1], False, 100, "the test set has 3 images"),
        ([0, 1, 2, 3], False, 100, "two of a class"),
        ([0, 0, 1, 1], True, 8, "gan.score=True divides the generated images into 10 parts, and gan.generated=8"),
    ],
)
def test_too_few_images_for_a_distance_or_a_score_are_refused(labels, score, generated, message):
    method = mock.create_autospec(Generates, instance=True, has_score=score, generated=generated)
    with pytest.raises(UserError, match=message):
        compatibility._check_generation(method, stream_of(labels))
    method.generated = 10
    compatibility._check_generation(method, stream_of([0, 0, 1, 1]))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"warmup_epochs": 1.0}, "config.optim.warmup_epochs=1.0 has no effect with optim.schedule='cdl_cosine'"),
        ({"milestones": (2, 4)}, "config.optim.milestones=(2, 4) has no effect with optim.schedule='cdl_cosine'"),
        ({"nesterov": True}, "config.optim.nesterov=True has no effect with optim.name='adam'"),
        ({"warmup_epochs": 1.0, "schedule": "cosine"}, ""),
        ({"nesterov": True, "name": "sgd"}, ""),
    ],
)
def test_options_of_another_optimizer_or_schedule_are_warned_of(changes, line, caplog):
    check("cdl", **{f"optim.{key}": value for key, value in changes.items()})
    assert len(caplog.records) == bool(line) and line in caplog.text
