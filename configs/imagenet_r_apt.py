"""APT on Split ImageNet-R, 10 tasks: ViT-B/16 teaches ViT-S/16.

    python -m cdl_jax.main --config configs/imagenet_r_apt.py --fetch
    python -m cdl_jax.main --config configs/imagenet_r_apt.py:distill=kd_token,student=vit_b16

Paper: continual distillation learning (arXiv 2407.13911, version 4); APT (Chen et al., ICCV 2025).
Published (student, percent; means over several runs, number unknown):

    distill    accuracy  forgetting
    none           71.71        4.25
    kd             72.65        3.92
    dkd            71.59        3.90
    fitnets        72.75        4.03
    reviewkd       72.70        3.93
    deit           72.34        3.71
    kd_token       73.29        3.73

Length: steps of 64 images, 35 epochs x 2 networks x 10 tasks. Time on a GPU: not measured.

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
    return cdl.experiment(data="imagenet_r", learner="apt", **choices)
