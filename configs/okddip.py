"""Online distillation with diverse peers (OKDDip, arXiv 1912.00350, AAAI 2020) and the methods it is compared with.

    python -m cdl_jax.fetch cifar100
    python -m cdl_jax.main --config configs/okddip.py:method=okddip,network=resnet32,data=cifar100 --workdir runs/okddip

method: okddip (base=branch or network), dml, one, cl_ilr (`--config.cl_ilr.bpscale=False`: CL), individual, kd (from a
  run of supervised: `teacher=resnet110` and `--config.teacher.weights=runs/resnet110`), supervised (the baseline).
network: resnet20/32/56/110, wide_resnet20_8, vgg16/19, densenetd40k12/d100k12/d190k12/d100k40; with data=imagenet:
  resnet18/34/50/101/152, wide_resnet14_10, wide_resnet101_2.
data: cifar10, cifar100, or imagenet: a folder with train/ and val/ in `--config.data.path`.
epochs: milestones (1/2 and 3/4) and ramp-up (80/300) scale with them. reference=true: the published program's
  peculiarities as well (DenseNet's shared last block, VGG's double pass, the divisor of the diversity).

CIFAR-100, ResNet-32, 300 epochs, OKDDip branch-based: error of the leader 25.65 +- 0.15 (Table 2), at the best epoch by
test error: `best` in results.json. The last incomplete batch of an epoch is left out (390 steps instead of 391). The
paper's settings for ImageNet are not published; those here are the usual ones of ResNet.
"""

from cdl_jax import config as base

STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}


def get_config(text=""):
    choices = base.arguments(
        text, method="okddip", network="resnet32", data="cifar100", epochs=0, seed=0, teacher="resnet110",
        base="branch", reference=False,
    )  # fmt: skip
    method, data = choices["method"], choices["data"]
    large = data == "imagenet"
    epochs = choices["epochs"] or (90 if large else 300)
    takes = {"okddip": ("network", "base", "reference"), "kd": ("network", "teacher"), "supervised": ("network",)}
    chosen = {key: choices[key] for key in takes.get(method, ("network", "reference"))}
    config = base.default(method, data="folder" if large else data, **chosen)
    config.seed = choices["seed"]
    config.data.num_tasks = 1
    config.train.update(epochs=epochs, batch_size=256 if large else 128)
    config.eval.update(batch_size=128, every_epochs=1)
    config.augment.mean, config.augment.std = STATISTICS[data]
    config.augment.flip = True
    config.augment.train = "random_resized_crop" if large else "pad_crop"
    if large:
        config.augment.test = "resize_center_crop"
    milestones = (epochs // 3, 2 * epochs // 3) if large else (epochs // 2, 3 * epochs // 4)
    config.optim.update(name="sgd", nesterov=True, learning_rate=0.1, weight_decay=1e-4 if large else 5e-4)
    config.optim.update(schedule="steps", milestones=milestones)
    if "length" in config.get(method, {}):
        config[method].length = round(80 * epochs / 300)
    return config
