"""Online distillation with diverse peers (OKDDip), and the compared methods.

Paper: arXiv 1912.00350, AAAI 2020.

    python -m cdl_jax.fetch cifar100
    python -m cdl_jax.main --config configs/okddip.py:method=okddip,network=resnet32,data=cifar100 --workdir runs/okddip

method: okddip (base=branch or network), dml, one, cl_ilr (`--config.cl_ilr.bpscale=False`: CL), individual, kd (from a
  run of supervised: `teacher=resnet110` and `--config.teacher.weights=runs/resnet110`), supervised (the baseline).
network: resnet20/32/56/110, wide_resnet20_8, vgg16/19, densenetd40k12/d100k12/d190k12/d100k40; with data=imagenet:
  resnet18/34/50/101/152, wide_resnet14_10, wide_resnet101_2.
data: cifar10, cifar100, or imagenet: a folder with train/ and val/ in `--config.data.path`.
epochs: milestones (1/2 and 3/4) and ramp-up (80/300) scale with them. reference=true: also the
  peculiarities of the published code (DenseNet's shared last block, VGG's double pass, the divisor of the diversity).
source: without effect; it selects a row of `python -m cdl_jax.report paper okddip`.

CIFAR-100, ResNet-32, 300 epochs, OKDDip branch-based: error of the leader 25.65 +- 0.15 (Table 2), at the best epoch by
test error: `best` in results.json. The incomplete last batch of an epoch is trained too (391 steps); its 80 images can
be divided over up to 16 devices. The paper's settings for ImageNet are not published. The common ones of ResNet are
used here, without the last batch, whose 143 images cannot be divided.
"""

from cdl_jax import config as base
from cdl_jax.published import okddip


def get_config(text=""):
    choices = base.arguments(
        text, method="okddip", network="resnet32", data="cifar100", epochs=0, seed=0, teacher="resnet110",
        base="branch", reference=False, source="",
    )  # fmt: skip
    seed = choices.pop("seed")
    config = okddip.build(**choices)
    config.seed = seed
    return config
