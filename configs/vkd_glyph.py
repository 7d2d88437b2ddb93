"""VkD's classification on a CPU: a small DeiT learns from a small RegNet.

The images are those of 20 characters. Results: docs/results/vkd.md.

    python -m cdl_jax.main --config configs/vkd_glyph.py:part=teacher --workdir runs/vkd_glyph/teacher \
        --config.data.path=glyph100.npz
    python -m cdl_jax.main --config configs/vkd_glyph.py --workdir runs/vkd_glyph/vkd \
        --config.data.path=glyph100.npz --config.teacher.weights=runs/vkd_glyph/teacher

part=student has arguments of the scheme: `feature` and `logit`, the weights of its two terms, `projector`, and `norm`,
the teacher's normalization; see cdl_jax/distill/vkd.py. feature=0,logit=0 is the student alone. Images are not mixed:
in a few epochs mixup and CutMix only slow training down. docs/guides/data.md shows how to draw glyph100.npz.
"""

from cdl_jax import config as base
from cdl_jax.errors import UserError

TEACHER = {"depth": 6, "w0": 16, "wa": 16.0, "wm": 2.0, "group_width": 8, "stem_width": 16, "image_size": 32}
STUDENT = {"dim": 48, "depth": 3, "heads": 3, "mlp_ratio": 2.0, "patch_size": 8, "stem_width": 8, "image_size": 32}


def get_config(text=""):
    choices = base.arguments(
        text, part="student", feature=1.0, logit=1.0, projector="householder", norm="layer", seed=0
    )
    if choices["part"] not in ("teacher", "student"):
        raise UserError(f"config argument part={choices['part']!r}: use teacher or student")
    if choices["part"] == "teacher":
        config = base.default("supervised", data="glyph_file", network="regnety_004")
        config.network.update(TEACHER)
    else:
        config = base.default("vkd", data="glyph_file", network="deit_ti_conv", teacher="regnety_004")
        config.teacher.update(TEACHER)
        config.student.update(STUDENT)
        config.mixing.probability = 0.0
        config.distill.update(feature_weight=choices["feature"], logit_weight=choices["logit"])
        config.distill.update(projector=choices["projector"], teacher_norm=choices["norm"])
        config.optim.no_decay = ("projector", "pos_embed", "cls_token", "dist_token")
    config.seed = choices["seed"]
    config.data.update(num_tasks=1, class_order=",".join(map(str, range(20))))
    config.data.update(max_train_per_class=200, max_test_per_class=100)
    config.augment.train = "shift"
    config.train.update(epochs=10 if choices["part"] == "teacher" else 6, batch_size=64)
    config.optim.update(name="adamw", learning_rate=2e-3, schedule="cosine", warmup_epochs=0.5, weight_decay=0.05)
    return config
