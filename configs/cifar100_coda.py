"""CODA-Prompt on Split CIFAR-100, 10 tasks: ViT-B/16 teaches ViT-S/16.

    python -m cdl_jax.main --config configs/cifar100_coda.py --fetch
    python -m cdl_jax.main --config configs/cifar100_coda.py:distill=kd_token,student=vit_b16

Paper: continual distillation learning (arXiv 2407.13911, version 4); CODA-Prompt (Smith et al., CVPR 2023).
Published (student, percent; means over several runs, number unknown):

    distill    accuracy  forgetting
    none           82.18        6.48
    kd             83.03        7.24
    dkd            82.27        7.81
    fitnets        81.83        8.83
    reviewkd       82.20        7.54
    deit           83.79        6.58
    kd_token       84.31        5.63

Length: 31,200 steps of 64 images (78 batches x 20 epochs x 2 networks x 10 tasks). Time on a GPU: not measured.

distill   kd (logit distillation), none, dkd, fitnets, reviewkd, kd_token (D-CDL), deit
student   vit_s16, vit_b16 (its teacher is vit_l16), vit_ti16
teacher   empty: the paper's
version   v4, v3, v2, v1: the version of the paper
reference  true: also the peculiarities of the authors' code, see configs/cdl.py
seed      of weights, batches and augmentation; the class order is the natural one
"""

from cdl_jax import config as base
from cdl_jax.published import cdl


def get_config(text=""):
    choices = base.arguments(text, distill="kd", student="vit_s16", teacher="", version="v4", reference=False, seed=0)
    return cdl.experiment(data="cifar100", learner="coda", **choices)
