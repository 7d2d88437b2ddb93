"""A GAN of seconds on glyph_mini: 4 characters, networks of 4 channels.

The packaged ViTs teach and measure.
"""

from cdl_jax import config as base


def get_config(text=""):
    choices = base.arguments(text, vkd="replaced", tasks=1)
    config = base.default("gan", data="glyph_mini", teacher="mini_teacher", measuring="mini_student")
    config.teacher.weights, config.measuring.weights = "package:glyph_mini_teacher", "package:glyph_mini_student"
    config.data.update(num_tasks=choices["tasks"], class_order="0,1,2,3", max_train_per_class=16, max_test_per_class=8)
    config.gan.update(width=1, z_dim=4, image_size=8, d_steps=2, ema_decay=0.9, ema_start=3, policy="translation")
    config.gan.update(lecam_weight=0.3, lecam_start=2, kd_head=(8, 8))
    config.gan.update(teacher_pixels="unit", vkd=choices["vkd"], generated=16, generation_batch=8, sheet_columns=2)
    config.augment.update(train="resize", test="resize", mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    config.train.update(epochs=3, batch_size=16)
    config.eval.update(batch_size=16, every_epochs=1)
    config.optim.update(schedule="constant", learning_rate=2e-4, betas=(0.0, 0.999))
    config.log.every_steps = 2
    config.checkpoint.every_steps = 2
    return config
