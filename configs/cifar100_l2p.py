"""Split CIFAR-100, 10 tasks of 10 classes: L2P with logit distillation, ViT-B/16 teaches ViT-S/16.

CDL (arXiv 2407.13911 v4), CIFAR-100, L2P, KD, Base -> Small: accuracy 79.64, forgetting 6.35 (`forgetting_cdl`); the
student alone (`:distill=none`) 77.71 / 7.12. Large -> Base (`:teacher=vit_l16,student=vit_b16`, then batch 32) 85.00 /
4.48. The published runs used two GPUs, over which the pools' losses were summed: `--config.cdl.aux_loss_scale=2`.

    python -m cdl_jax.fetch cifar100
    python -m cdl_jax.main --config configs/cifar100_l2p.py --workdir runs/cifar100_l2p_kd \
        --config.teacher.weights=vit_base_patch16_224.augreg_in21k_ft_in1k.safetensors \
        --config.student.weights=vit_small_patch16_224.augreg_in21k_ft_in1k.safetensors
"""

from cdl_jax import config as base


def get_config(text=""):
    choices = base.arguments(text, learner="l2p", distill="kd", teacher="vit_b16", student="vit_s16")
    config = base.default("cdl", data="cifar100", **choices)
    config.data.num_tasks = 10
    config.augment.train, config.augment.flip = "random_resized_crop", True
    config.augment.test = "resize"
    config.train.epochs = 20
    config.train.batch_size = 32 if choices["teacher"] == "vit_l16" else 64
    return config
