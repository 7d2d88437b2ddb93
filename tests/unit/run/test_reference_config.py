"""Rows of configs/reference.py on emoji have the stream of configs/emoji.py.

Networks of these rows can therefore be teachers in configs/emoji.py.
"""

import runpy
from pathlib import Path

import pytest

from cdl_jax import config as configs
from cdl_jax import plugins
from cdl_jax.errors import UserError
from cdl_jax.methods.base import StreamInfo

FOLDER = Path(__file__).parents[3] / "configs"
emoji, reference = (runpy.run_path(str(FOLDER / f"{name}.py"))["get_config"] for name in ("emoji", "reference"))
INFO = StreamInfo(400, (40,) * 10)


@pytest.mark.parametrize("label", ["identity", "subgroup"])
@pytest.mark.parametrize("row", ["nearest_mean", "probe", "finetune"])
def test_the_stream_is_that_of_the_students(row, label):
    own = reference(f"row={row},data=emoji_file,network=efficientnet_lite0,label={label},seed=3")
    theirs = emoji(f"label={label},seed=3")
    assert configs.flatten(own.data) == configs.flatten(theirs.data) and own.data.class_order_seed == 3
    assert own.seed == theirs.seed and own.train.epochs == theirs.train.epochs
    assert own.network.weights == ""
    method = plugins.load_plugin("methods", own.method).build(own, INFO)
    assert (method.image_size, own.augment.test, own.augment.train) == (96, "resize", theirs.augment.train)
    assert own.augment.mean == (127 / 255,) * 3 and own.augment.std == (128 / 255,) * 3


def test_a_probe_learns_its_head_alone_at_the_rate_of_the_students():
    config = reference("row=probe,data=emoji_file,network=resnet18")
    assert config.supervised.trained == "head" and config.optim.learning_rate == emoji("").optim.learning_rate
    assert reference("row=finetune").supervised.trained == "network"
    assert (config.network.image_size, config.augment.test, config.augment.mean) == (224, "resize", ())
    assert reference("row=probe").augment.test == "none"


def test_unknown_rows_and_labels_are_refused():
    with pytest.raises(UserError, match="row='prob': use nearest_mean or probe or finetune"):
        reference("row=prob")
    with pytest.raises(UserError, match="label='face': use identity or subgroup"):
        reference("data=emoji_file,label=face")
