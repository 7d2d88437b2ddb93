"""VkD on ImageNet-1K: a RegNetY-160 teaches a DeiT-Ti by orthogonal projection.

The DeiT-Ti has a convolutional stem.

    python -m cdl_jax.main --config configs/imagenet_vkd.py --config.data.path=imagenet
    python -m cdl_jax.main --config configs/imagenet_vkd.py:network=deit_s_conv --config.data.path=imagenet

Paper: VkD (arXiv 2403.06213, CVPR 2024), classification.
Published (top-1, percent): deit_ti_conv 78.3 in the paper, 79.2 in the authors' repository; deit_s_conv 82.3 and 82.9.
Length: 750,600 steps of 512 images (2,502 batches x 300 epochs). Time on a GPU: not measured.

The teacher's weights are DeiT's file, which the user downloads into the current folder:
https://dl.fbaipublicfiles.com/deit/regnety_160-a5fe301d.pth. `data.path` holds train/ and val/, or ImageNet's tar
archives (docs/guides/data.md). `--mode describe` needs neither.

row        vkd; orthogonal, unconstrained (ablation); kd, none (comparison)
network    deit_ti_conv, deit_s_conv
reference  true: weight decay applies to the projector, as in the published code
"""

from cdl_jax import config as base
from cdl_jax.published import vkd


def get_config(text=""):
    choices = base.arguments(text, row="vkd", network="deit_ti_conv", teacher="regnety_160", seed=0, reference=False)
    seed = choices.pop("seed")
    config = vkd.build(**choices)
    config.seed = seed
    config.teacher.weights = "regnety_160-a5fe301d.pth"
    return config
