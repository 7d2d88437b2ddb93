"""Options that do not fit the method are refused in one line."""

import pytest

from cdl_jax import config as configs
from cdl_jax import plugins
from cdl_jax.errors import UserError
from cdl_jax.methods.base import StreamInfo
from cdl_jax.training import compatibility

INFO = StreamInfo(4, (2, 2))


def check(method, **changes):
    choices = {"network": "slim_resnet18"} if method == "dkt" else {}
    config = configs.default(method, data="glyph_mini", **choices)
    config.update_from_flattened_dict(changes)
    built = plugins.load_plugin("methods", method).build(config, INFO)
    compatibility.check_method(config, built, INFO, ("a", "b", "c", "d"))


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("dkt", {"dkt.num_learners": 3, "peer_devices": 2}, "config.peer_devices=2: dkt divides 3 networks"),
        ("dkt", {"peer_devices": 2, "dkt.update_order": "sequential"}, "config.peer_devices=2: dkt divides 1 networks"),
        ("dkt", {"peer_devices": 2, "seeds": (0, 1)}, "config.seeds and config.peer_devices cannot be combined"),
        ("dkt", {"dkt.update_order": "sequential", "train.early_stopping.patience": 3}, "has 2 phases a task here"),
        ("cdl", {"train.early_stopping.patience": 3}, "method 'cdl' has 2 phases a task here"),
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
