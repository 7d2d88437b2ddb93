"""Quick start: a small ViT with L2P learns 20 characters in 5 tasks.

The ViT learns alone or with a teacher, and is tested in other fonts.

Images (glyph_mini) and pretrained weights come with the package. Half a minute on two CPU cores;
docs/start/quickstart.md has the results over five seeds.

    python -m cdl_jax.main --config configs/quickstart.py:distill=none --workdir runs/quickstart/alone
    python -m cdl_jax.main --config configs/quickstart.py --workdir runs/quickstart/distilled
"""

from cdl_jax import config as base

# Learners for a backbone of 48 dimensions and 3 blocks: long prompts of U[0, 1) numbers would dominate its tokens.
SMALL = {
    "l2p": {"pool": 10, "length": 2},
    "dualprompt": {"length": 4, "general_length": 2, "general_layers": 1, "expert_layers": 2},
    "coda": {"pool": 40, "length": 4, "layers": 3},
    "lae": {"layers": 3},
    "os_prompt": {"pool": 40, "length": 4, "layers": 3},
    "ranpac": {"projection": 500},
}


def get_config(text=""):
    choices = base.arguments(
        text, learner="l2p", distill="kd", teacher="mini_teacher", student="mini_student", seed=0, joint=False
    )
    seed, joint = choices.pop("seed"), choices.pop("joint")
    config = base.default("cdl", data="glyph_mini", **choices)
    config.seed = seed
    config.data.num_tasks = 1 if joint else 5
    config.augment.train = "shift"
    config.train.epochs = 8
    config.train.batch_size = 32
    config.optim.learning_rate = 1e-2  # from the search in docs/start/quickstart.md
    config.teacher.weights = "package:glyph_mini_teacher"
    config.student.weights = "package:glyph_mini_student"
    if choices["distill"] == "kd":
        config.distill.alpha = 0.9
    if choices["distill"] == "prompt_mapping":
        config.distill.layers = 3
    config.learner.update(SMALL.get(choices["learner"], {}))
    return config
