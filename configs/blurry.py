"""An online blurry stream (i-Blurry-50-10): each image once.

Half of the classes are disjoint. 10% of the images of each other class are dealt out to all tasks.

    python -m cdl_jax.main --config configs/blurry.py --workdir runs/blurry
    python -m cdl_jax.main --config configs/blurry.py:data=cifar100,sizes=random --fetch

data      glyph_mini, which comes with the package, cifar100, imagenet_r, tiny_imagenet, ...
learner   a learner with one pass: l2p, dualprompt, coda, apt, ...
sizes     equal (i-Blurry), or random (Si-Blurry)
online    true: one pass over the images; false: 8 epochs

A teacher that trains before the student would be a second pass, so both train on each batch (cdl.schedule). With
data=glyph_mini the networks are those of configs/quickstart.py, else ViT-B/16 and ViT-S/16.
"""

from cdl_jax import config as base
from cdl_jax.published import cdl


def get_config(text=""):
    choices = base.arguments(text, data="glyph_mini", learner="l2p", distill="kd", sizes="equal", online=True, seed=0)
    sizes, online, seed = (choices.pop(key) for key in ("sizes", "online", "seed"))
    is_small = choices["data"] == "glyph_mini"
    teacher, student = ("mini_teacher", "mini_student") if is_small else ("vit_b16", "vit_s16")
    config = base.default("cdl", teacher=teacher, student=student, **choices)
    config.seed = seed
    config.data.update(kind="blurry", blurry_sizes=sizes, online=online, class_order="shuffle", class_order_seed=seed)
    config.data.update(num_tasks=5, base_classes=0, increment=0)
    config.train.epochs = 1 if online else 8
    config.cdl.schedule = "interleaved"
    if is_small:
        config.augment.train = "shift"
        config.train.batch_size = 16
        config.optim.learning_rate = 1e-2
        config.teacher.weights, config.student.weights = "package:glyph_mini_teacher", "package:glyph_mini_student"
        if choices["learner"] == "l2p":
            config.learner.update(pool=10, length=2)
    else:
        config.augment.update(train="random_resized_crop", flip=True, test="resize_center_crop")
        config.teacher.weights, config.student.weights = cdl.WEIGHTS["vit_b16"], cdl.WEIGHTS["vit_s16"]
    return config
