"""Pretrains a ViT on characters that no stream of this family contains; `weights.npz` goes into the other configs.

    python -m cdl_jax.main --config configs/pretrain_glyph.py:network=glyph_teacher --workdir runs/pretrain/teacher \
        --config.data.path=glyph_pretrain354.npz
"""

from cdl_jax import config as base


def get_config(text=""):
    choices = base.arguments(text, network="glyph_student", data="glyph_file")
    config = base.default("supervised", **choices)
    config.data.num_tasks = 1
    config.augment.train = "shift"
    config.train.epochs = 8 if choices["network"].endswith("teacher") else 4
    config.train.batch_size = 128
    config.optim.name = "adamw"
    config.optim.learning_rate = 1.5e-3
    config.optim.schedule = "cosine"
    config.optim.warmup_epochs = 0.4
    config.optim.betas = (0.9, 0.98)
    config.optim.weight_decay = 0.05
    config.optim.clip_norm = 1.0
    return config
