"""Rows that continual learners are compared with, of one pretrained network: on the quick start's stream by default.

row=nearest_mean   nearest class mean on the frozen backbone, without any gradient
row=finetune       the whole network learns each task after the other

Two more rows are learners of the other configs: `learner=none,distill=none` is a linear probe, the head alone on the
frozen backbone, and `joint=true` gives any learner all classes in one task (the upper bound of CDL's authors). A joint
run has one task, so its `last` is the accuracy over all pictures of all classes after it has seen all data. It compares
with `last` of the other rows, and where tasks have test sets of different sizes with their `last_image_weighted`. In
any config, `--config.data.num_tasks=1` does the same. Results: docs/glyph100.md.

    python -m cdl_jax.main --config configs/reference.py:row=nearest_mean --workdir runs/reference/nearest_mean
    python -m cdl_jax.main --config configs/quickstart.py:learner=none,distill=none --workdir runs/reference/probe
    python -m cdl_jax.main --config configs/quickstart.py:distill=none,joint=true --workdir runs/reference/joint
    python -m cdl_jax.main --config configs/reference.py:row=finetune,data=glyph_file,network=glyph_student \
        --workdir runs/glyph100/finetune --config.data.path=glyph100.npz \
        --config.network.weights=runs/pretrain/student/weights.npz
"""

from cdl_jax import config as base
from cdl_jax.errors import UserError

METHODS = {"nearest_mean": "nearest_mean", "finetune": "supervised"}


def get_config(text=""):
    choices = base.arguments(text, row="nearest_mean", network="mini_student", data="glyph_mini", joint=False, seed=0)
    if choices["row"] not in METHODS:
        raise UserError(f"config argument row={choices['row']!r}: use {' or '.join(METHODS)}")
    config = base.default(METHODS[choices["row"]], data=choices["data"], network=choices["network"])
    config.seed = choices["seed"]
    config.augment.train = "shift"
    config.optim.learning_rate = 5e-4
    if choices["data"] == "glyph_mini":
        config.data.num_tasks = 5
        config.train.update(epochs=8, batch_size=32)
        config.network.weights = f"package:glyph_{choices['network']}"
    else:
        config.data.update(num_tasks=10, max_train_per_class=100, max_test_per_class=20)
        config.train.epochs = 5
        config.network.weights = ""
    if choices["joint"]:
        config.data.num_tasks = 1
    return config
