"""Your own images in a folder for each class: ViT-B/16 teaches ViT-S/16.

The student learns task by task, by prompts and distillation.

    python -m cdl_jax.main --config configs/own_images.py --config.data.path=FOLDER --fetch
    python -m cdl_jax.main --config configs/own_images.py:learner=coda,tasks=2 --config.data.path=FOLDER

FOLDER holds train/<class>/ and test/<class>/, or <class>/ alone; docs/guides/data.md has the other layouts. Images have
any size. `--fetch` downloads the pretrained weights. The settings are those of continual distillation learning (arXiv
2407.13911) for Split CIFAR-100; no result is published. Time: not measured.

learner   l2p, dualprompt, coda, apt
distill   kd, none, dkd, fitnets, reviewkd, kd_token (a token with prompts), vkd, or a scheme of yours
          (docs/tutorials/first_scheme.md)
student   vit_s16, vit_b16, vit_ti16
teacher   vit_b16, vit_l16
tasks     into how many tasks of equal size the classes are split; data.task_sizes has other sizes
epochs    of each network in a task
"""

from cdl_jax import config as base
from cdl_jax.published import cdl


def get_config(text=""):
    choices = base.arguments(
        text, learner="l2p", distill="kd", student="vit_s16", teacher="vit_b16", tasks=5, epochs=20, seed=0
    )
    tasks, epochs, seed = (choices.pop(key) for key in ("tasks", "epochs", "seed"))
    config = base.default("cdl", data="folder", **choices)
    config.seed = seed
    config.data.num_tasks = tasks
    config.augment.update(train="random_resized_crop", flip=True, test="resize_center_crop")
    config.train.update(epochs=epochs, batch_size=64)
    config.teacher.weights = cdl.WEIGHTS.get(choices["teacher"], "")
    config.student.weights = cdl.WEIGHTS.get(choices["student"], "")
    return config
