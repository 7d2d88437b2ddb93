"""BigGAN on few images of CIFAR, as in DiffAugment, LeCam, KD-DLGAN and VkD.

This training is described; no run is ours.

    python -m cdl_jax.main --config configs/gan.py:data=cifar100,part=20,row=kd_dlgan --mode describe

data     cifar10, cifar100
part     100, 20 or 10: percent of the training images, the first of a permutation with seed 0
row      biggan; da, with DiffAugment; lecam, da with LeCam; kd_dlgan, da with the terms of KD-DLGAN; vkd, da with our
         reading of VkD's loss
reading  of VkD: literal (beside KD-DLGAN's aggregated term) or replaced (in its place)

docs/methods/generation.md has the schedule and the names of rows. The teacher is CLIP ViT-B/32 from a file of yours.
KD-DLGAN's correlated term needs its text features, a .npy file in gan.text_features; without the file, `row=kd_dlgan`
has the aggregated term alone. Distances are measured by EfficientNet-Lite0 and are not FID.
"""

from cdl_jax import config as base
from cdl_jax.errors import UserError

ROWS = ("biggan", "da", "lecam", "kd_dlgan", "vkd")
TESTS = 4000  # iterations between two evaluations
EPOCHS = {("cifar10", 100): 1000, ("cifar100", 100): 2000}  # of all images; of fewer 5000


def get_config(text=""):
    choices = base.arguments(text, data="cifar10", part=100, row="da", reading="literal", texts="")
    data, part, row = choices["data"], choices["part"], choices["row"]
    if data not in ("cifar10", "cifar100") or part not in (100, 20, 10) or row not in ROWS:
        raise UserError(f"config arguments data={data}, part={part}, row={row}: choose of {', '.join(ROWS)}, and see "
                        "the docstring of configs/gan.py")  # fmt: skip
    config = base.default("gan", data=data, teacher="clip_vit_b32", measuring="efficientnet_lite0")
    config.data.update(num_tasks=1, max_train=500 * part if part < 100 else 0)
    config.augment.update(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5), flip=True)
    config.gan.policy = "" if row == "biggan" else "translation,cutout"
    config.gan.measuring_pixels = "signed"
    config.measuring.update(weights="efficientnet-lite0-57934424.pth", image_size=96)
    if row == "lecam":
        config.gan.lecam_weight = 0.3
    if row in ("kd_dlgan", "vkd"):
        config.teacher.weights = "ViT-B-32.pt"
    if row == "kd_dlgan":
        config.gan.text_features = choices["texts"]
        config.gan.kd_terms = ("aggregated", "correlated", "diversity") if choices["texts"] else ("aggregated",)
    if row == "vkd":
        config.gan.vkd = choices["reading"]
    iterations = 500 * part // 200  # of an epoch
    config.train.update(epochs=EPOCHS.get((data, part), 5000), batch_size=200)
    config.eval.update(every_epochs=TESTS // iterations, forward_transfer=False)
    config.optim.update(name="adam", learning_rate=2e-4, betas=(0.0, 0.999), schedule="constant")
    config.log.every_steps = 250
    config.checkpoint.every_steps = TESTS
    return config
