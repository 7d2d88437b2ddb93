"""Pretrains a ViT on characters that are in no stream of this family.

The other configs read the ViT's `weights.npz`.

    python -m cdl_jax.main --config configs/pretrain_glyph.py:network=glyph_teacher --workdir runs/pretrain/teacher \
        --config.data.path=glyph_pretrain354.npz

Accuracy on the 354 characters in held-out fonts, on one CPU core: see docs/results/glyph100_baselines.md.
docs/guides/data.md shows how to draw such a file from fonts. With `,data=emoji_file` the images are the emoji that
configs/emoji.py leaves out, for 150 epochs with crops and color jitter: see docs/results/emoji.md.
"""

from cdl_jax import config as base

EPOCHS = {"glyph_teacher": 9, "mini_teacher": 6}  # students: 4


def get_config(text=""):
    choices = base.arguments(text, network="glyph_student", data="glyph_file")
    config = base.default("supervised", **choices)
    config.data.num_tasks = 1
    config.augment.train = "shift"
    config.train.epochs = EPOCHS.get(choices["network"], 4)
    config.train.batch_size = 128
    config.optim.name = "adamw"
    config.optim.learning_rate = 1.5e-3 if choices["network"] in EPOCHS else 2e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_epochs = 0.4
    config.optim.betas = (0.9, 0.98)
    config.optim.weight_decay = 0.05
    config.optim.clip_norm = 1.0
    if choices["data"] == "emoji_file":
        config.data.update(part="pretraining", stream_classes=400)
        config.train.epochs = 150
        config.augment.update(train="random_resized_crop", scale=(0.6, 1.0), jitter=0.3)
    return config
