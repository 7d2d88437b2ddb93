"""VkD's classification: a small DeiT learns from RegNetY-160.

Paper: arXiv 2403.06213, CVPR 2024. One task has all classes.

    python -m cdl_jax.main --config configs/vkd.py --workdir runs/vkd/ti --config.data.path=imagenet \
        --config.teacher.weights=regnety_160-a5fe301d.pth

ImageNet-1K, 300 epochs, batch 512: 78.3 in the paper, 79.2 by the authors' later run with these teacher weights
(DeiT-S: 82.3 and 82.9). `reference=true` applies weight decay to the projector, as the published code does: its
Householder map is zero from the second step on, and the feature loss has no effect.

row        vkd; the paper's ablation: orthogonal (without the teacher's standardization), unconstrained (also with a
           linear projector); baselines: kd (only the teacher's logits), none (only labels)
network    deit_ti_conv, deit_s_conv, any other DeiT, ViT or convolutional network
teacher    regnety_160, any other network; its weights are a file of timm's names or the directory of a run
data       folder, any other source
reference  false, true
source     without effect; it selects a row of `python -m cdl_jax.report paper vkd`

Images are augmented as in the published code: bicubic crops, one of gray, solarize and blur, and color jitter. Options
that have no effect there work here, and are off: `augment.rand_augment`
("rand-m9-mstd0.5-inc1" there), `augment.erase` (0.25), `augment.repeats` (3), `student.drop_path` (0.1). `vkd.ema`, off
there too, also evaluates the moving average of the student's weights.
"""

from cdl_jax import config as base
from cdl_jax.published import vkd


def get_config(text=""):
    choices = base.arguments(
        text, row="vkd", network="deit_ti_conv", teacher="regnety_160", data="folder", reference=False, source=""
    )
    return vkd.build(**choices)
