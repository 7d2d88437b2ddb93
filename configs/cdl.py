"""Any result of the CDL papers' tables (arXiv 2407.13911).

The stream is Split CIFAR-100 or Split ImageNet-R, 10 tasks.

    python -m cdl_jax.main --config configs/cdl.py:learner=coda,distill=kd_token --workdir runs/coda_dcdl/0 --fetch \
        --config.teacher.weights=vit_base_patch16_224.augreg_in21k_ft_in1k \
        --config.student.weights=vit_small_patch16_224.augreg_in21k_ft_in1k
    python -m cdl_jax.report runs/coda_dcdl/*

version    of the paper: v4, v3 (the same without APT), v2, v1
data       cifar100, imagenet_r
learner    l2p, dualprompt, coda, apt (v4)
distill    kd, none, dkd, fitnets, reviewkd, kd_token (v4: D-CDL, v3: KDP, v2: KD-Token), deit (v3, v4),
           prompt_mapping (v1)
student    vit_s16, vit_b16, vit_ti16 (v1), vit_l16 (v1, alone)
teacher    the papers': vit_b16, for a student vit_b16 vit_l16
reference  false: as in the papers. true: also the peculiarities of the authors' code: losses of pools and features
           count twice, because they were summed over two GPUs, and an APT teacher uses the prompts of earlier tasks

The first value is the default. `python -m cdl_jax.report paper cdl` lists all published results by these arguments.
"""

from cdl_jax import config as base
from cdl_jax.published import cdl


def get_config(text=""):
    choices = base.arguments(
        text, version="v4", data="cifar100", learner="l2p", distill="kd", teacher="", student="vit_s16", reference=False
    )
    return cdl.build(**choices)
