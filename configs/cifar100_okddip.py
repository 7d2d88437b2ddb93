"""OKDDip on CIFAR-100: three branches of a ResNet-32 and their leader.

Branches and leader learn together, without a trained teacher.

    python -m cdl_jax.main --config configs/cifar100_okddip.py --fetch
    python -m cdl_jax.main --config configs/cifar100_okddip.py:method=dml,network=vgg16

Paper: Online Knowledge Distillation with Diverse Peers (arXiv 1912.00350, AAAI 2020), Table 2.
Published: error of the leader 25.65 +- 0.15 percent at the best epoch by test error (`best` in results.json).
Length: 117,300 steps of 128 images (391 batches x 300 epochs). Time on a GPU: not measured.

method   okddip (base=branch or network), dml, one, cl_ilr, individual, supervised
network  resnet32 and the others of configs/okddip.py, which has all results of the paper
"""

from cdl_jax import config as base
from cdl_jax.published import okddip


def get_config(text=""):
    choices = base.arguments(
        text, method="okddip", base="branch", network="resnet32", epochs=0, seed=0, reference=False
    )
    seed = choices.pop("seed")
    config = okddip.build(data="cifar100", **choices)
    config.seed = seed
    return config
