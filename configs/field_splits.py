"""Named data sets in the splits of the field (B0-IncN, B50-IncN).

ViT-B/16 teaches ViT-S/16.

    python -m cdl_jax.main --config configs/field_splits.py:data=cub200 --fetch
    python -m cdl_jax.main --config configs/field_splits.py:data=cifar100,base=50,increment=10 --fetch

data       cub200, imagenet_a, imagenet_r, cifar100, tiny_imagenet, imagenet100, omnibenchmark, vtab, food101,
           stanford_cars
base       classes of the first task; 0: as many as increment
increment  classes of each later task; 0: the split of the source, in cifar100 and imagenet_r 10 tasks
order      of the classes: numpy_shuffle with seed 1993, as in PyCIL and PILOT, or natural
learner, distill, epochs  as in configs/own_images.py

The settings are those of configs/own_images.py. No result is published for them. Time: not measured.
"""

from cdl_jax import config as base
from cdl_jax.published import cdl


def get_config(text=""):
    choices = base.arguments(
        text, data="cub200", learner="l2p", distill="kd", base=0, increment=0, order="numpy_shuffle", epochs=20, seed=0
    )
    first, increment, order, epochs, seed = (
        choices.pop(key) for key in ("base", "increment", "order", "epochs", "seed")
    )
    config = base.default("cdl", student="vit_s16", teacher="vit_b16", **choices)
    config.seed = seed
    config.data.update(class_order=order, class_order_seed=1993)
    if increment:
        config.data.update(num_tasks=0, base_classes=first, increment=increment)
    config.augment.update(train="random_resized_crop", flip=True, test="resize_center_crop")
    config.train.update(epochs=epochs, batch_size=64)
    config.teacher.weights = cdl.WEIGHTS["vit_b16"]
    config.student.weights = cdl.WEIGHTS["vit_s16"]
    return config
