"""OKDDip and the compared methods on 20 characters, on a CPU.

The characters are in one or more tasks, and are tested in other fonts.

    python -m cdl_jax.main --config configs/okddip_glyph.py --workdir runs/glyph/okddip
    python -m cdl_jax.main --config configs/okddip_glyph.py:method=dml,tasks=5 --workdir runs/glyph/dml5

A ResNet-20 with a quarter of the width. In a stream every loss spans the current task's classes. method: see
configs/okddip.py; for kd `--config.teacher.weights` names a run of method=supervised.
"""

from cdl_jax import config as base


def get_config(text=""):
    choices = base.arguments(text, method="okddip", tasks=1, epochs=12, seed=0, base="branch")
    method, epochs = choices["method"], choices["epochs"]
    chosen = {"okddip": {"base": choices["base"]}, "kd": {"teacher": "resnet20"}}.get(method, {})
    config = base.default(method, data="glyph_mini", network="resnet20", **chosen)
    for section in (config.get(name) for name in ("network", "student", "teacher")):
        if section is not None:
            section.update(depths=(1, 1, 1), widths=(8, 16, 32))
    config.seed = choices["seed"]
    config.data.num_tasks = choices["tasks"]
    config.augment.train = "shift"
    config.train.update(epochs=epochs, batch_size=32)
    config.eval.every_epochs = 1
    config.optim.update(name="sgd", nesterov=True, learning_rate=0.05, weight_decay=5e-4)
    config.optim.update(schedule="steps", milestones=(epochs // 2, 3 * epochs // 4))
    if "length" in config.get(method, {}):
        config[method].length = max(1, round(80 * epochs / 300))
    return config
