"""A run of seconds on glyph scenes, with or without a teacher.

A ViDT of one block a stage learns two tasks.
"""

from cdl_jax import config as base

TINY = {
    "embed_dim": 8, "depths": (1, 1, 1, 1), "heads": (1, 2, 4, 8), "window": 4, "dim": 32, "decoder_heads": 2,
    "decoder_layers": 1, "points": 2, "hidden": 32, "dropout": 0.1, "queries": 8, "weights": "random",
}  # fmt: skip


def get_config(text=""):
    choices = base.arguments(text, distill="none", tasks=2)
    config = base.default("vidt", data="coco", distill=choices["distill"])
    config.data.update(num_tasks=choices["tasks"])
    config.student.update(TINY)
    if "teacher" in config:
        config.teacher.update({**TINY, "embed_dim": 16})
    config.augment.update({"scales": (), "crop": 0.0, "eval_size": 0, "canvases": (), "group_size": 4})
    config.train.update(epochs=2, batch_size=8)
    config.eval.batch_size = 8
    config.optim.learning_rate = 1e-3
    config.log.every_steps = 1
    config.checkpoint.every_steps = 2
    return config
