"""5-datasets, each a task: SVHN, MNIST, CIFAR-10, notMNIST, FashionMNIST.

ViT-B/16 teaches ViT-S/16.

    python -m cdl_jax.main --config configs/five_datasets.py:tfds=DIR,notmnist=FOLDER --fetch

tfds      data_dir with the prepared sets svhn_cropped, mnist and fashion_mnist; empty: that of tfds
notmnist  folder of notMNIST with train/<letter>/ and test/<letter>/
cifar10   path of CIFAR-10; empty: the usual places
learner, distill, epochs  as in configs/own_images.py

The order is that of the PyTorch code of L2P and DualPrompt. Paths have neither commas nor equal signs.
"""

from cdl_jax import config as base
from cdl_jax.published import cdl


def get_config(text=""):
    choices = base.arguments(
        text, learner="l2p", distill="kd", tfds="", notmnist="notMNIST", cifar10="", epochs=5, seed=0
    )
    tfds, notmnist, cifar10, epochs, seed = (
        choices.pop(key) for key in ("tfds", "notmnist", "cifar10", "epochs", "seed")
    )
    config = base.default("cdl", data="several_sets", student="vit_s16", teacher="vit_b16", **choices)
    config.seed = seed
    config.data.sets = (
        f"tfds:dataset=svhn_cropped,path={tfds}",
        f"tfds:dataset=mnist,path={tfds}",
        f"cifar10:path={cifar10}",
        f"folder:path={notmnist}",
        f"tfds:dataset=fashion_mnist,path={tfds}",
    )
    config.augment.update(train="resize", test="resize")
    config.train.update(epochs=epochs, batch_size=64)
    config.teacher.weights = cdl.WEIGHTS["vit_b16"]
    config.student.weights = cdl.WEIGHTS["vit_s16"]
    return config
