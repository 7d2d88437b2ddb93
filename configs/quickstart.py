"""Quick start."""

from cdl_jax import config as base


def get_config(text=""):
    choices = base.arguments(text, learner="l2p", distill="kd", teacher="mini_teacher", student="mini_student", seed=0)
    seed = choices.pop("seed")
    config = base.default("cdl", data="glyph_mini", **choices)
    config.seed = seed
    config.data.num_tasks = 5
    config.augment.train = "shift"
    config.train.epochs = 5
    config.train.batch_size = 32
    config.optim.learning_rate = 5e-3
    config.teacher.weights = "random"
    config.student.weights = "random"
    return config
