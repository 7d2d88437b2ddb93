"""APT on Split CIFAR-100, 10 tasks: ViT-B/16 teaches ViT-S/16.

    python -m cdl_jax.main --config configs/cifar100_apt.py --fetch
    python -m cdl_jax.main --config configs/cifar100_apt.py:distill=kd_token,student=vit_b16

Paper: continual distillation learning (arXiv 2407.13911, version 4); APT (Chen et al., ICCV 2025).
Published (student, percent; means over several runs, number unknown):

    distill    accuracy  forgetting
    none           83.30        4.35
    kd             84.27        4.67
    dkd            83.51        4.29
    fitnets        83.95        4.64
    reviewkd       84.08        4.82
    deit           83.81        3.44
    kd_token       84.28        3.89

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
    return cdl.experiment(data="cifar100", learner="apt", **choices)
