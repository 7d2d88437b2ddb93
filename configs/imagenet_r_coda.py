"""CODA-Prompt on Split ImageNet-R, 10 tasks: ViT-B/16 teaches ViT-S/16.

    python -m cdl_jax.main --config configs/imagenet_r_coda.py --fetch
    python -m cdl_jax.main --config configs/imagenet_r_coda.py:distill=kd_token,student=vit_b16

Paper: continual distillation learning (arXiv 2407.13911, version 4); CODA-Prompt (Smith et al., CVPR 2023).
Published (student, percent; means over several runs, number unknown):

    distill    accuracy  forgetting
    none           67.44        8.52
    kd             69.91        7.64
    dkd            68.92        8.39
    fitnets        69.87        7.38
    reviewkd       70.19        7.68
    deit           70.74        6.66
    kd_token       71.92        5.61

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
    return cdl.experiment(data="imagenet_r", learner="coda", **choices)
