"""Rows that continual learners are compared with, on the quick start's stream or on Split-Glyph-100.

row=linear_probe   the head alone learns, on the frozen backbone
row=nearest_mean   nearest class mean on the frozen backbone, without any gradient
row=finetune       the whole pretrained network learns each task after the other
row=joint          the `learner` alone (L2P by default) with all classes in one task: the upper bound of CDL's authors

A joint run has one task, so its `last` is the accuracy over all pictures of all classes after it has seen all data. It
compares with `last` of the other rows, and where tasks have test sets of different sizes with `last_image_weighted`.
Any other config learns jointly with `--config.data.num_tasks=1`. Results: docs/glyph100.md.

    python -m cdl_jax.main --config configs/reference.py:row=nearest_mean --workdir runs/reference/nearest_mean
    python -m cdl_jax.main --config configs/reference.py:row=finetune,data=glyph_file,network=glyph_student \
        --workdir runs/glyph100/finetune --config.data.path=glyph100.npz \
        --config.network.weights=runs/pretrain/student/weights.npz
"""

from cdl_jax import config as base
from cdl_jax.errors import UserError

METHODS = {"linear_probe": "cdl", "nearest_mean": "nearest_mean", "finetune": "supervised", "joint": "cdl"}


def get_config(text=""):
    choices = base.arguments(text, row="linear_probe", learner="l2p", network="mini_student", data="glyph_mini", seed=0)
    row, network, data = choices["row"], choices["network"], choices["data"]
    if row not in METHODS:
        raise UserError(f"config argument row={row!r}: use {', '.join(METHODS)}")
    if METHODS[row] == "cdl":
        learner = choices["learner"] if row == "joint" else "none"
        config = base.default("cdl", data=data, teacher=network, student=network, learner=learner, distill="none")
        section = config.student
        if learner == "l2p":
            config.learner.update(pool=10, length=2)
    else:
        config = base.default(METHODS[row], data=data, network=network)
        section = config.network
    config.seed = choices["seed"]
    config.data.num_tasks = 5
    config.train.update(epochs=8, batch_size=32)
    config.optim.learning_rate = 5e-3
    section.weights = f"package:glyph_{network}"
    if data == "glyph_file":
        config.data.update(num_tasks=10, max_train_per_class=100, max_test_per_class=20)
        config.train.update(epochs=5, batch_size=64)
        section.weights = ""
        if config.get("learner", {}).get("name") == "l2p":
            config.learner.top_k = 1
    if row == "finetune":
        config.optim.learning_rate = 5e-4
    if row == "joint":
        config.data.num_tasks = 1
    config.augment.train = "shift"
    return config
