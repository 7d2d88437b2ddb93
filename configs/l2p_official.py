"""L2P or DualPrompt as in their authors' code, alone or with a teacher.

The code is github.com/google-research/l2p. The stream has 10 tasks.

Options and settings are those of the authors' configs/cifar100_l2p.py, cifar100_dualprompt.py and imr_dualprompt.py;
the batch size is that of 8 devices. Remaining differences: a batch-wise selection is a vote of the complete batch here,
and of a device's images there. A test batch may hold the last images of one task and the first of the next. Gradient
clipping ignores the frozen backbone here, and includes it there. Their weights are Google's ViT-B_16.npz of
ImageNet-21k.

    python -m cdl_jax.fetch cifar100
    python -m cdl_jax.main --config configs/l2p_official.py --workdir runs/l2p_official \
        --config.student.weights=ViT-B_16.npz

learner  l2p, dualprompt
data     cifar100, imagenet_r
distill  none: the student alone, as published; else any scheme, with `teacher` and --config.teacher.weights
joint    true: all classes in one task
"""

from cdl_jax import config as base
from cdl_jax import plugins
from cdl_jax.errors import UserError


def get_config(text=""):
    choices = base.arguments(
        text, learner="l2p", data="cifar100", distill="none", teacher="vit_l16", student="vit_b16", joint=False
    )
    joint, learner, data = choices.pop("joint"), choices["learner"], choices["data"]
    official = getattr(plugins.load_plugin("models.learners", learner), "OFFICIAL", None)
    if official is None:
        raise UserError(f"config argument learner={learner!r}: use l2p or dualprompt")
    config = base.default("cdl", **choices)
    config.learner.update(official)
    config.cdl.teacher_query = "teacher"
    config.data.num_tasks = 1 if joint else 10
    config.augment.train, config.augment.flip, config.augment.scale = "random_resized_crop", True, (0.05, 1.0)
    config.augment.test, config.augment.resize = "resize_center_crop", 256
    config.train.update(epochs=5, batch_size=16 * 8 if learner == "l2p" else 24 * 8)
    rate = 0.03
    if (learner, data) == ("dualprompt", "imagenet_r"):
        config.learner.update(length=20, batchwise=False)
        config.train.epochs, rate = 50, 0.005
    config.optim.update(learning_rate=rate * config.train.batch_size / 256, schedule="constant", clip_norm=1.0)
    return config
