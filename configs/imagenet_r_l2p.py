"""Split ImageNet-R, 10 tasks of 20 classes: L2P with logit distillation, ViT-B/16 teaches ViT-S/16.

CDL (arXiv 2407.13911 v4), ImageNet-R, L2P, KD, Base -> Small: accuracy 63.97, forgetting 6.51 (`forgetting_cdl`); the
student alone (`:distill=none`) 63.82 / 6.52. Large -> Base (`:teacher=vit_l16,student=vit_b16`, then batch 32) 74.12 /
4.60. The published runs used two GPUs, over which the pools' losses were summed: `--config.cdl.aux_loss_scale=2`.

    python -m cdl_jax.fetch imagenet_r
    python -m cdl_jax.main --config configs/imagenet_r_l2p.py --workdir runs/imagenet_r_l2p_kd \
        --config.teacher.weights=vit_base_patch16_224.augreg_in21k_ft_in1k.safetensors \
        --config.student.weights=vit_small_patch16_224.augreg_in21k_ft_in1k.safetensors
"""

from cdl_jax import config as base


def get_config(text=""):
    choices = base.arguments(text, learner="l2p", distill="kd", teacher="vit_b16", student="vit_s16")
    config = base.default("cdl", data="imagenet_r", **choices)
    config.data.num_tasks = 10
    config.augment.train, config.augment.flip = "random_resized_crop", True
    config.augment.test, config.augment.resize = "resize_center_crop", 256
    config.train.epochs = 35
    config.train.batch_size = 32 if choices["teacher"] == "vit_l16" else 64
    return config
