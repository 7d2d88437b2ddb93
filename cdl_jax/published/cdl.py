"""Builds the config of every cell in the CDL papers' tables.

All cells share the defaults of optimizer, learners and schemes. This module sets what differs between cells. Pixels are
in [0, 1] without normalization, classes are in their natural order, and the teacher's prompt pool is queried with the
student's features.

Source: arXiv 2407.13911, versions 1 to 4.
"""

from collections.abc import Mapping
from typing import Any

from cdl_jax import config as base
from cdl_jax import plugins
from cdl_jax.errors import UserError

CONFIG_KEYS = {"data": "data.name", "learner": "learner.name"}
IDENTITY = ("method", "data.name", "learner.name", "distill.name") + tuple(
    f"{network}.{size}" for network in ("teacher", "student") for size in ("dim", "depth")
)
COMPARED_KEYS = ()

_DATA = {
    "cifar100": {"epochs": 20, "test": "resize"},
    "imagenet_r": {"epochs": 35, "test": "resize_center_crop"},
}

# Rows that differ from a scheme with its defaults: version -> row -> (scheme, options).
_KDP = {"kd_token": ("kd_token", {"n_layers": 12, "length": 6}), "deit": ("kd_token", {"n_layers": 1})}
_ROWS = {
    "v1": {},
    "v2": {"kd_token": ("kd_token", {"variant": "deit"})},  # called KD-Token in version 2; the token starts as zeros
    "v3": _KDP,
    "v4": _KDP,
}

# timm's names of the pretrained weights; docs/guides/published.md discusses how certain these names are.
WEIGHTS = {
    f"vit_{short}16": f"vit_{size}_patch16_224.augreg_in21k_ft_in1k"
    for short, size in {"ti": "tiny", "s": "small", "b": "base", "l": "large"}.items()
}

_TEACHERS = {"vit_ti16": "vit_b16", "vit_s16": "vit_b16", "vit_b16": "vit_l16"}


def build(
    version: str = "v4",
    data: str = "cifar100",
    learner: str = "l2p",
    distill: str = "kd",
    teacher: str = "",
    student: str = "vit_s16",
    reference: bool = False,
) -> base.Config:
    """Returns the config of a cell.

    Args:
      version: of the paper, "v1" to "v4". Until v2 the key losses of L2P and DualPrompt were summed over the batch.
      data: "cifar100" or "imagenet_r".
      learner: prompt pool, a plug-in of `cdl_jax.models.learners`.
      distill: a row of the version's table: a scheme's name, or "deit" (v3, v4: the distillation token alone).
      teacher: a ViT; "": the one that the papers pair with the student. It has no effect if `distill` is "none".
      student: a ViT, such as "vit_s16".
      reference: add the undocumented deviations of the authors' code, see `_add_reference_deviations`.

    Raises:
      UserError: there is no such version, data set, row or size.

    >>> build(distill="kd_token").distill.length
    6
    """
    for key, value, choices in (("version", version, _ROWS), ("data", data, _DATA)):
        if value not in choices:
            raise UserError(f"config argument {key}={value!r}: {plugins.did_you_mean(value, choices)}")
    schemes = {name: (name, {}) for name in plugins.list_plugins("distill")} | _ROWS[version]
    if distill not in schemes and "." not in distill:
        raise UserError(
            f"config argument distill={distill!r}: no row of version {version} and no scheme; "
            + plugins.did_you_mean(distill, schemes)
        )
    scheme, options = schemes.get(distill, (distill, {}))
    has_teacher = scheme != "none"
    teacher = teacher or _TEACHERS.get(student, "" if has_teacher else student)
    if not teacher:
        raise UserError(f"config argument student={student}: the papers give it no teacher, name one with teacher=")
    config = base.default("cdl", data=data, learner=learner, distill=scheme, teacher=teacher, student=student)
    config.distill.update(options)
    config.data.num_tasks = 10
    config.augment.update(train="random_resized_crop", flip=True, test=_DATA[data]["test"])
    config.train.epochs = _DATA[data]["epochs"]
    config.train.batch_size = 32 if "vit_l16" in ((teacher, student) if has_teacher else (student,)) else 64
    if version in ("v1", "v2") and "key_loss" in config.learner:
        config.learner.key_loss = "legacy_sum"
    if reference:
        _add_reference_deviations(config)
    return config


def experiment(
    seed: int = 0, teacher: str = "", student: str = "vit_s16", distill: str = "kd", **choices: Any
) -> base.Config:
    """Returns the config of a cell with a seed and the names of pretrained weights.

    Args:
      seed: of the run.
      teacher, student, distill, choices: see `build`.
    """
    config = build(teacher=teacher, student=student, distill=distill, **choices)
    config.seed = seed
    config.student.weights = WEIGHTS.get(student, "")
    config.teacher.weights = WEIGHTS.get(teacher or _TEACHERS.get(student, student), "")
    return config


def _add_reference_deviations(config):
    """Adds the undocumented deviations of the authors' runs.

    The authors used two GPUs. Losses of pools and features are means over a device's half of the batch and were summed,
    which doubles their weight. DualPrompt's sum over the batch is unchanged by the split. L2P's double sum pairs images
    of one device only, which are half of all pairs. An APT teacher used the prompts of the preceding tasks.
    """
    if "key_loss" in config.learner:
        scale_of_sums = {"l2p": 0.5, "dualprompt": 1.0}
        config.cdl.aux_loss_scale = (
            scale_of_sums[config.learner.name] if config.learner.key_loss == "legacy_sum" else 2.0
        )
    if "feature_weight" in config.distill:
        config.distill.feature_weight *= 2
    if "teacher_prompts" in config.learner:
        config.learner.teacher_prompts = "merged"


def irrelevant_prefixes(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Returns prefixes of keys without effect in a flat config.

    Without a teacher, the settings of teachers have no effect.

    >>> irrelevant_prefixes({"distill.name": "kd"})
    ()
    """
    if config.get("distill.name") != "none":
        return ()
    return ("teacher.", "learner.teacher_prompts", "cdl.teacher_query", "cdl.schedule", "cdl.teacher")
