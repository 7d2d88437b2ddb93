"""Settings of OKDDip's results and of those it is compared with (arXiv 1912.00350); top-1 at the best epoch.

All sources share one recipe, that of the published program: later papers that measured the same methods state no other.
For ImageNet it says nothing, and the usual settings of ResNet stand in.
"""

from cdl_jax import config as base_config
from cdl_jax import plugins
from cdl_jax.errors import UserError

NAMED = {"method": "method"}
# Options of a network's family, without dropout and how its first weights are drawn.
_SIZES = "family block depths widths inner_multiplier channel_unit group_depth growth blocks".split()
IDENTITY = ("method", "data.name", "okddip.base") + tuple(
    f"{section}.{key}" for section in ("network", "student", "teacher") for key in _SIZES
)
NEEDED = ("eval.every_epochs",)  # the best of fewer epochs is not so good

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
    source="", data="cifar100", method="okddip", base="branch", network="resnet32", teacher="resnet110", epochs=0,
    reference=False,
):  # fmt: skip
    """The config of a cell.

    Args:
      source: who published the number; without effect.
      base: of okddip, "branch" or "network"; "" in cells of other methods.
      teacher: of kd.
      epochs: 0: 300, on ImageNet 90; milestones and ramp-up scale with them.
      reference: with the published program's peculiarities.

    Raises:
      UserError: no such data set, method or network.
    """
    del source
    for key, value, known in (("data", data, _STATISTICS), ("method", method, _METHODS)):
        if value not in known:
            raise UserError(f"config argument {key}={value!r}: {plugins.did_you_mean(value, known)}")
    large = data == "imagenet"
    epochs = epochs or (90 if large else 300)
    choices = {"network": network, "base": base, "teacher": teacher, "reference": reference}
    chosen = {key: choices[key] for key in _METHODS[method]}
    config = base_config.default(method, data="folder" if large else data, **chosen)
    config.data.num_tasks = 1
    # ImageNet's last batch has 143 pictures, which would not divide over devices.
    config.train.update(epochs=epochs, batch_size=256 if large else 128, last_batch="drop" if large else "keep")
    config.eval.update(batch_size=128, every_epochs=1)
    config.augment.mean, config.augment.std = _STATISTICS[data]
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


def irrelevant(config: dict) -> tuple[str, ...]:
    """Prefixes of keys of a flat config without effect on accuracy: by what the diversity is divided."""
    return (f"{config.get('method')}.diversity_divisor",)
