"""Any result of the CDL papers' tables (arXiv 2407.13911), on Split CIFAR-100 or Split ImageNet-R, 10 tasks.

    python -m cdl_jax.fetch cifar100
    python -m cdl_jax.main --config configs/cdl.py:learner=coda,distill=kd_token --workdir runs/coda_dcdl/0 \
        --config.teacher.weights=vit_base_patch16_224.augreg_in21k_ft_in1k.safetensors \
        --config.student.weights=vit_small_patch16_224.augreg_in21k_ft_in1k.safetensors
    python -m cdl_jax.report runs/coda_dcdl/*

| argument | values, the default first |
|---|---|
| version | v4, v3 (as v4), v2, v1: of the paper |
| data | cifar100, imagenet_r |
| learner | l2p, dualprompt, coda, apt (v4) |
| distill | kd, none, dkd, fitnets, reviewkd, kd_token (v2: KD-Token, v3: KDP, v4: D-CDL), deit (v3, v4), prompt_mapping (v1) |
| student | vit_s16, vit_b16, vit_ti16 (v1), vit_l16 (v1, without a teacher) |
| teacher | the papers': vit_b16, of vit_b16 vit_l16 |
| reference | false: as the papers describe it. true: with what the authors' program did besides, as the tables were made |

`python -m cdl_jax.report --paper cdl` lists all results with the arguments that lead to them, in this order.
"""  # noqa: E501

from cdl_jax import config as base
from cdl_jax.published import cdl


def get_config(text=""):
    choices = base.arguments(
        text, version="v4", data="cifar100", learner="l2p", distill="kd", teacher="", student="vit_s16", reference=False
    )
    return cdl.build(**choices)
