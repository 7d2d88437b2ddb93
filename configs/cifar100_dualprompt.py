"""DualPrompt on Split CIFAR-100, 10 tasks: ViT-B/16 teaches ViT-S/16.

    python -m cdl_jax.main --config configs/cifar100_dualprompt.py --fetch
    python -m cdl_jax.main --config configs/cifar100_dualprompt.py:distill=kd_token,student=vit_b16

Paper: continual distillation learning (arXiv 2407.13911, version 4); DualPrompt (Wang et al., ECCV 2022).
Published (student, percent; means over several runs, number unknown):

    distill    accuracy  forgetting
    none           79.85        6.12
    kd             80.16        5.76
    dkd            80.44        6.96
    fitnets        80.70        5.73
    reviewkd       80.33        5.86
    deit           80.64        5.67
    kd_token       81.78        3.63

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
    return cdl.experiment(data="cifar100", learner="dualprompt", **choices)
