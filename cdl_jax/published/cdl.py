"""Settings of every cell of the CDL papers' tables (arXiv 2407.13911, versions 1 to 4).

What all share are the defaults of optimizer, learners and schemes; here is what differs between cells. Pixels are in
[0, 1] without normalisation, classes in their natural order, and the student's backbone asks the teacher's pool too.
"""

from cdl_jax import config as base
from cdl_jax import plugins
from cdl_jax.errors import UserError

NAMED = {"data": "data.name", "learner": "learner.name"}
IDENTITY = ("method", "data.name", "learner.name", "distill.name") + tuple(
    f"{network}.{size}" for network in ("teacher", "student") for size in ("dim", "depth")
)

_DATA = {
    "cifar100": {"epochs": 20, "test": "resize"},
    "imagenet_r": {"epochs": 35, "test": "resize_center_crop"},
}

# Rows that are more than a scheme with its defaults: version -> row -> (scheme, options).
_KDP = {"kd_token": ("kd_token", {"n_layers": 12, "length": 6}), "deit": ("kd_token", {"n_layers": 1})}
_ROWS = {
    "v1": {},
    "v2": {"kd_token": ("kd_token", {"variant": "deit"})},  # called KD-Token there; a token of zeros
    "v3": _KDP,
    "v4": _KDP,
}

# timm's names of the pretrained weights; docs/guides/published.md discusses how certain these names are.
WEIGHTS = {
    f"vit_{short}16": f"vit_{size}_patch16_224.augreg_in21k_ft_in1k"
    for short, size in {"ti": "tiny", "s": "small", "b": "base", "l": "large"}.items()
}

_TEACHERS = {"vit_ti16": "vit_b16", "vit_s16": "vit_b16", "vit_b16": "vit_l16"}


def build(version="v4", data="cifar100", learner="l2p", distill="kd", teacher="", student="vit_s16", reference=False):
    """The config of a cell.

    Args:
      version: of the paper, v1 to v4. Until v2 the key losses of L2P and DualPrompt were summed over the batch.
      distill: a row of the version's table: a scheme's name, or "deit" (v3, v4: the distillation token alone).
      teacher: a ViT; empty: the one that the papers give the student. Without effect where `distill` is "none".
      reference: with the authors' deviations from what they describe, see `_follow_the_program`.

    Raises:
      UserError: no such version, data set, row or size.
    """
    for key, value, known in (("version", version, _ROWS), ("data", data, _DATA)):
        if value not in known:
            raise UserError(f"config argument {key}={value!r}: {plugins.did_you_mean(value, known)}")
    schemes = {name: (name, {}) for name in plugins.list_plugins("distill")} | _ROWS[version]
    if distill not in schemes and "." not in distill:
        raise UserError(
            f"config argument distill={distill!r}: no row of version {version} and no scheme; "
            + plugins.did_you_mean(distill, schemes)
        )
    scheme, options = schemes.get(distill, (distill, {}))
    alone = scheme == "none"
    teacher = teacher or _TEACHERS.get(student, student if alone else "")
    if not teacher:
        raise UserError(f"config argument student={student}: the papers give it no teacher, name one with teacher=")
    config = base.default("cdl", data=data, learner=learner, distill=scheme, teacher=teacher, student=student)
    config.distill.update(options)
    config.data.num_tasks = 10
    config.augment.update(train="random_resized_crop", flip=True, test=_DATA[data]["test"])
    config.train.epochs = _DATA[data]["epochs"]
    config.train.batch_size = 32 if "vit_l16" in ((student,) if alone else (teacher, student)) else 64
    if version in ("v1", "v2") and "pull" in config.learner:
        config.learner.pull = "legacy_sum"
    if reference:
        _follow_the_program(config)
    return config


def experiment(seed=0, teacher="", student="vit_s16", distill="kd", **choices):
    """Returns the config of a cell with its seed and the names of its pretrained weights.

    Args:
      teacher, student, distill, choices: as in `build`.
    """
    config = build(teacher=teacher, student=student, distill=distill, **choices)
    config.seed = seed
    config.student.weights = WEIGHTS.get(student, "")
    config.teacher.weights = WEIGHTS.get(teacher or _TEACHERS.get(student, student), "")
    return config


def _follow_the_program(config):
    """What the authors' runs did without saying so.

    They ran on two GPUs. Losses of pools and of features are means over a device's half of the batch, and were added
    up: twice their weight. A sum over the batch stays what it is (DualPrompt's); L2P's double sum pairs pictures of one
    device only, which are half of all pairs. And an APT teacher taught with the prompts of the tasks before.
    """
    if "pull" in config.learner:
        of_sums = {"l2p": 0.5, "dualprompt": 1.0}
        config.cdl.aux_loss_scale = of_sums[config.learner.name] if config.learner.pull == "legacy_sum" else 2.0
    if "feature_weight" in config.distill:
        config.distill.feature_weight *= 2
    if "teacher_prompts" in config.learner:
        config.learner.teacher_prompts = "merged"


def irrelevant(config: dict) -> tuple[str, ...]:
    """Prefixes of keys of a flat config that have no effect in it: without a teacher, all that tells about one."""
    if config.get("distill.name") != "none":
        return ()
    return ("teacher.", "learner.teacher_prompts", "cdl.query", "cdl.schedule", "cdl.teacher")
