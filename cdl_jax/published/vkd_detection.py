"""Builds the configs of ViDT's and VkD's results on COCO.

The results are AP after the last epoch.

Rows differ in networks, scheme, number of epochs and images of a step. The teacher of token matching was trained for 50
epochs, that of VkD for 150.

Sources: arXiv 2110.03921 (ViDT), arXiv 2403.06213 (VkD).
"""

from collections.abc import Mapping
from typing import Any

from cdl_jax import config as base
from cdl_jax import plugins
from cdl_jax.errors import UserError

CONFIG_KEYS = {"distill": "distill.name"}
IDENTITY = ("method", "data.name", "distill.name", "student.neck") + tuple(
    f"{network}.{size}" for network in ("student", "teacher") for size in ("embed_dim", "depths")
)
COMPARED_KEYS = ()

# Swin classifiers: of ViDT's release v0.1-swin (nano) and of Swin's release v1.0.0.
BACKBONES = {
    "nano": "swin_nano_patch4_window7_224.pth",
    "tiny": "swin_tiny_patch4_window7_224.pth",
    "small": "swin_small_patch4_window7_224.pth",
    "base": "swin_base_patch4_window7_224_22k.pth",
}
# scheme -> epochs of its teachers.
_TEACHERS = {"none": 0, "token_matching": 50, "projected_tokens": 150}
_IMAGES_OF_A_DEVICE = 2


def build(
    student: str = "nano",
    distill: str = "none",
    teacher: str = "",
    epochs: int | str = 50,
    layout: str = "",
    reference: bool = False,
) -> base.Config:
    """Returns the config of a cell.

    Args:
      student: a key of `BACKBONES`.
      distill: "none", "token_matching" or "projected_tokens" (VkD).
      teacher: "small" or "base"; "": base. It has no effect without a scheme.
      epochs: 50 or 150 in the papers.
      layout: "", or "without_neck": heads on the tokens of the backbone.
      reference: without effect; no deviation of the authors' code concerns these rows.

    Raises:
      UserError: there is no such network, scheme or layout, or the epochs are no number.

    >>> build(distill="projected_tokens", teacher="base").train.batch_size, build(epochs="150").train.epochs
    (12, 150)
    """
    del reference
    teacher = teacher or "base"
    for key, value, choices in (
        ("student", student, BACKBONES), ("distill", distill, _TEACHERS), ("teacher", teacher, ("small", "base")),
        ("layout", layout, ("", "without_neck")),
    ):  # fmt: skip
        if value not in choices:
            raise UserError(f"config argument {key}={value!r}: {plugins.did_you_mean(value, choices)}")
    if not str(epochs).isdecimal():
        raise UserError(f"config argument epochs={epochs!r} is not a number of epochs: use 50 or 150")
    config = base.default("vidt", data="coco", student=f"vidt_{student}", teacher=f"vidt_{teacher}", distill=distill)
    config.student.weights = BACKBONES[student]
    config.data.num_tasks = 1
    config.train.epochs = int(epochs)
    config.train.batch_size = _IMAGES_OF_A_DEVICE * _devices(distill, teacher)
    config.eval.batch_size = config.train.batch_size  # has no influence: groups are pairs of neighbors
    config.eval.forward_transfer = False
    config.checkpoint.every_steps = 2000
    if distill != "none":
        config.teacher.weights = f"vidt_{teacher}_{_TEACHERS[distill]}.pth"
    if layout:
        config.student.neck = False
        config.vidt.class_loss = "softmax"
    return config


def _devices(distill, teacher):
    """Returns the number of devices of the published command."""
    return 6 if (distill, teacher) == ("projected_tokens", "base") else 8


def irrelevant_prefixes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns prefixes of keys without effect in a flat config.

    Canvases, the solver of the matching and the implementation of the sampling change results by rounding alone. A
    teacher from a file has no checkpoint to select.
    """
    del config
    return (
        "augment.canvases", "vidt.solver", "student.sampling", "teacher.sampling",
        "vidt.teacher_network", "vidt.teacher_checkpoint",
    )  # fmt: skip
