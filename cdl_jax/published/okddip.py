"""Builds the configs of the results of OKDDip and of the compared methods.

The results are top-1 at the best epoch.

All sources share the recipe of the authors' code, because later papers that measured the same methods state no other
recipe. The code has no recipe for ImageNet, so the usual settings of ResNet are used.

Source: arXiv 1912.00350.
"""

from collections.abc import Mapping
from typing import Any

from cdl_jax import config as base_config
from cdl_jax import plugins
from cdl_jax.errors import UserError

CONFIG_KEYS = {"method": "method"}
# Options of a network's family, without dropout and the initialization of its weights.
_SIZES = "family block depths widths inner_multiplier channel_unit group_depth growth blocks".split()
IDENTITY = ("method", "data.name", "okddip.base") + tuple(
    f"{section}.{key}" for section in ("network", "student", "teacher") for key in _SIZES
)
COMPARED_KEYS = ("eval.every_epochs",)  # the best of fewer epochs is worse

_STATISTICS = {
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
_METHODS = {
    "okddip": ("network", "base", "reference"),
    "kd": ("network", "teacher"),
    "supervised": ("network",),
    **dict.fromkeys(("dml", "one", "cl_ilr", "individual"), ("network", "reference")),
}


def build(
    source: str = "",
    data: str = "cifar100",
    method: str = "okddip",
    base: str = "branch",
    network: str = "resnet32",
    teacher: str = "resnet110",
    epochs: int = 0,
    reference: bool = False,
) -> base_config.Config:
    """Returns the config of a cell.

    Args:
      source: who published the number; without effect.
      data: "cifar10", "cifar100" or "imagenet".
      method: a key of `_METHODS`.
      base: of okddip, "branch" or "network"; "" in cells of other methods.
      network: architecture of the trained networks, such as "resnet32".
      teacher: architecture of kd's teacher.
      epochs: 0: 300, on ImageNet 90. Milestones and ramp-up are scaled with the number of epochs.
      reference: add the peculiarities of the authors' code.

    Raises:
      UserError: there is no such data set, method or network.

    >>> build(method="one").one.length, build(method="one", epochs=150).one.length
    (80, 40)
    """
    del source
    for key, value, allowed in (("data", data, _STATISTICS), ("method", method, _METHODS)):
        if value not in allowed:
            raise UserError(f"config argument {key}={value!r}: {plugins.did_you_mean(value, allowed)}")
    is_imagenet = data == "imagenet"
    epochs = epochs or (90 if is_imagenet else 300)
    choices = {"network": network, "base": base, "teacher": teacher, "reference": reference}
    arguments = {key: choices[key] for key in _METHODS[method]}
    config = base_config.default(method, data="folder" if is_imagenet else data, **arguments)
    config.data.num_tasks = 1
    # ImageNet's last batch has 143 images, which devices could not share equally.
    config.train.update(
        epochs=epochs, batch_size=256 if is_imagenet else 128, last_batch="drop" if is_imagenet else "keep"
    )
    config.eval.update(batch_size=128, every_epochs=1)
    config.augment.mean, config.augment.std = _STATISTICS[data]
    config.augment.flip = True
    config.augment.train = "random_resized_crop" if is_imagenet else "pad_crop"
    if is_imagenet:
        config.augment.test = "resize_center_crop"
    milestones = (epochs // 3, 2 * epochs // 3) if is_imagenet else (epochs // 2, 3 * epochs // 4)
    config.optim.update(name="sgd", nesterov=True, learning_rate=0.1, weight_decay=1e-4 if is_imagenet else 5e-4)
    config.optim.update(schedule="steps", milestones=milestones)
    if "length" in config.get(method, {}):
        config[method].length = round(80 * epochs / 300)
    return config


def irrelevant_prefixes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns prefixes of keys without effect on accuracy in a flat config.

    The only such key is the divisor of the diversity.
    """
    return (f"{config.get('method')}.diversity_divisor",)
