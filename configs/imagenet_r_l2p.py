"""L2P on Split ImageNet-R, 10 tasks: ViT-B/16 teaches ViT-S/16.

    python -m cdl_jax.main --config configs/imagenet_r_l2p.py --fetch
    python -m cdl_jax.main --config configs/imagenet_r_l2p.py:distill=kd_token,student=vit_b16

Paper: continual distillation learning (arXiv 2407.13911, version 4); L2P (Wang et al., CVPR 2022).
Published (student, percent; means over several runs, number unknown):

    distill    accuracy  forgetting
    none           63.82        6.52
    kd             63.97        6.51
    dkd            62.91        6.55
    fitnets        64.29        6.37
    reviewkd       63.64        6.36
    deit           64.99        3.83
    kd_token       68.18        2.08

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
    return cdl.experiment(data="imagenet_r", learner="l2p", **choices)
