"""Builds the configs of VkD's classification results on ImageNet-1K.

The results are top-1 at the best epoch.

All rows share one recipe. The rows of the ablation omit the standardization of the teacher's features, and then also
the constraint on the projection. Paper and repository differ only in the teacher's weights and the number of devices.

Source: arXiv 2403.06213.
"""

from collections.abc import Mapping
from typing import Any

from cdl_jax import config as base
from cdl_jax import plugins
from cdl_jax.errors import UserError

CONFIG_KEYS = {}
IDENTITY = ("method", "data.name", "distill.name") + tuple(
    f"{network}.{key}"
    for network, keys in (
        ("student", ("family", "dim", "depth", "heads", "stem_width", "distillation")),
        ("teacher", ("family", "depth", "w0", "wa", "wm", "group_width")),
    )
    for key in keys
)
COMPARED_KEYS = ("eval.every_epochs",)  # the best of fewer epochs is worse

# row -> options of `distill`
_ROWS = {
    "vkd": {},
    "orthogonal": {"teacher_norm": "none"},
    "unconstrained": {"teacher_norm": "none", "projector": "linear"},
    # Not in the paper: baselines with the same recipe, with the teacher's logits only and with labels only.
    "kd": {"feature_weight": 0.0},
    "none": {"feature_weight": 0.0, "logit_weight": 0.0},
}


def build(
    source: str = "",
    row: str = "vkd",
    network: str = "deit_ti_conv",
    teacher: str = "regnety_160",
    data: str = "folder",
    reference: bool = False,
) -> base.Config:
    """Returns the config of a cell.

    Args:
      source: who published the number; without effect.
      row: a key of `_ROWS`.
      network: architecture of the student.
      teacher: architecture of the teacher.
      data: name of a data source; default: images in a folder.
      reference: apply weight decay to the projector too, as the authors' code does.

    Raises:
      UserError: there is no such row, network or data set.

    >>> build(row="unconstrained").distill.projector
    'linear'
    """
    del source
    if row not in _ROWS:
        raise UserError(f"config argument row={row!r}: {plugins.did_you_mean(row, _ROWS)}")
    config = base.default("vkd", network=network, teacher=teacher, data=data)
    config.data.num_tasks = 1
    config.train.update(epochs=300, batch_size=512)
    config.eval.every_epochs = 1
    config.optim.update(name="adamw", learning_rate=5e-4, schedule="cosine", end_learning_rate=5e-6, weight_decay=0.05)
    config.optim.no_decay = ("projector", "pos_embed", "cls_token", "dist_token")
    config.augment.update(train="random_resized_crop", flip=True, test="resize_center_crop")
    config.augment.update(interpolation="bicubic", three_augment=True, jitter=0.3)
    config.augment.update(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    config.distill.update(_ROWS[row])
    config.distill.reference_exact = reference
    return config


def irrelevant_prefixes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns prefixes of keys without effect in a flat config.

    A teacher from a file has no checkpoint to select.
    """
    del config
    return ("vkd.teacher_checkpoint", "vkd.teacher_network")
