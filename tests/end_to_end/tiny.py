"""A run of seconds on glyph_mini: two small random ViTs, any learner and scheme."""

from cdl_jax import config as base

SMALL = {
    "l2p": {"pool": 6, "length": 4, "top_k": 2},
    "dualprompt": {"length": 4, "general_length": 2, "general_layers": 1, "expert_layers": 1},
    "coda": {"pool": 10, "length": 4, "layers": 2},
    "lae": {"layers": 2, "constant_epochs": 0},
    "os_prompt": {"pool": 10, "length": 4, "layers": 2},
    "ranpac": {"projection": 32},
}


def get_config(text=""):
    choices = base.arguments(text, learner="l2p", distill="kd", data="glyph_mini")
    config = base.default("cdl", teacher="mini_teacher", student="mini_student", **choices)
    for section, dim in ((config.teacher, 32), (config.student, 16)):
        section.update(dim=dim, depth=2, heads=2, patch_size=16, weights="random")
    config.learner.update(SMALL.get(choices["learner"], {}))
    config.data.num_tasks = 5
    config.data.max_train_per_class = 16
    config.data.max_test_per_class = 8
    config.augment.train = "shift"
    config.train.update(epochs=2, batch_size=16)
    config.eval.batch_size = 32
    config.optim.learning_rate = 5e-3
    config.log.every_steps = 3
    config.checkpoint.every_steps = 5
    return config
