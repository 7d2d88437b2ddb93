"""A domain-incremental stream: ViT-B/16 teaches ViT-S/16, domain by domain.

Each task has the same classes in a new domain.

    python -m cdl_jax.main --config configs/domains.py --config.data.path=core50_128x128 --fetch
    python -m cdl_jax.main --config configs/domains.py:data=office_home,learner=coda --config.data.path=OfficeHome
    python -m cdl_jax.main --config configs/domains.py:data=domain_folder --config.data.path=FOLDER

data      core50, domainnet, office_home, or domain_folder: yours, as <domain>/<class>/*
learner   l2p, dualprompt, coda, apt, ... (not ease, whose adapters belong to classes of one task)
distill   kd, none, dkd, fitnets, reviewkd, kd_token, vkd, or a scheme of yours
epochs    of each network in a task

docs/guides/streams.md describes the stream. The settings are those of configs/own_images.py; no result is published.
Time: not measured.
"""

from cdl_jax import config as base
from cdl_jax.published import cdl


def get_config(text=""):
    choices = base.arguments(text, data="core50", learner="l2p", distill="kd", epochs=5, seed=0)
    epochs, seed = choices.pop("epochs"), choices.pop("seed")
    config = base.default("cdl", student="vit_s16", teacher="vit_b16", **choices)
    config.seed = seed
    config.augment.update(train="random_resized_crop", flip=True, test="resize_center_crop")
    config.train.update(epochs=epochs, batch_size=64)
    config.teacher.weights = cdl.WEIGHTS["vit_b16"]
    config.student.weights = cdl.WEIGHTS["vit_s16"]
    return config
