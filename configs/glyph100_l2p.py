"""Split-Glyph-100, 10 tasks of 10 characters in fonts never seen: L2P with logit distillation between two small ViTs.

Backbones come from `configs/pretrain_glyph.py` (networks glyph_teacher and glyph_student), which has seen none of the
100 characters. Results: docs/glyph100.md.

    python -m cdl_jax.main --config configs/glyph100_l2p.py --workdir runs/glyph100/kd --config.data.path=glyph100.npz \
        --config.teacher.weights=runs/pretrain/teacher/weights.npz \
        --config.student.weights=runs/pretrain/student/weights.npz
"""

from cdl_jax import config as base

# Learners cut down to a backbone of 64 dimensions, which long prompts of U[0, 1) numbers swamp.
SMALL = {
    "l2p": {"pool": 10, "length": 2, "top_k": 1},
    "dualprompt": {"length": 4, "general_length": 2},
    "coda": {"pool": 50, "length": 4},
}


def get_config(text=""):
    choices = base.arguments(
        text, learner="l2p", distill="kd", teacher="glyph_teacher", student="glyph_student", seed=0, joint=False
    )
    seed, joint = choices.pop("seed"), choices.pop("joint")
    config = base.default("cdl", data="glyph_file", **choices)
    config.seed = seed
    config.data.num_tasks = 1 if joint else 10
    config.data.max_train_per_class = 100
    config.data.max_test_per_class = 20
    config.augment.train = "shift"
    config.train.epochs = 5
    config.optim.learning_rate = 5e-3
    config.learner.update(SMALL.get(choices["learner"], {}))
    return config
