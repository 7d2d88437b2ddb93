"""Settings of VkD's classification results on ImageNet-1K (arXiv 2403.06213); top-1 at the best epoch.

All rows share one recipe; the ablation's leave out the teacher's standardisation and then the constraint on the
projection. Paper and repository differ in the teacher's weights and in the number of devices alone.
"""

from cdl_jax import config as base
from cdl_jax import plugins
from cdl_jax.errors import UserError

NAMED = {}
IDENTITY = ("method", "data.name", "distill.name") + tuple(
    f"{network}.{key}"
    for network, keys in (
        ("student", ("family", "dim", "depth", "heads", "stem_width", "distillation")),
        ("teacher", ("family", "depth", "w0", "wa", "wm", "group_width")),
    )
    for key in keys
)
NEEDED = ("eval.every_epochs",)  # the best of fewer epochs is not so good

# row -> options of `distill`
_ROWS = {
    "vkd": {},
    "orthogonal": {"teacher_norm": "none"},
    "unconstrained": {"teacher_norm": "none", "projector": "linear"},
    # Not of the paper: what a row is worth above labels, and above the teacher's logits, with the same recipe.
    "kd": {"feature_weight": 0.0},
    "none": {"feature_weight": 0.0, "logit_weight": 0.0},
}


def build(source="", row="vkd", network="deit_ti_conv", teacher="regnety_160", data="folder", reference=False):
    """The config of a cell.

    Args:
      source: who published the number; without effect.
      row: a key of `_ROWS`.
      reference: weight decay reaches the projector too, as in the published program.

    Raises:
      UserError: no such row, network or data set.
    """
    del source
    if row not in _ROWS:
        raise UserError(f"config argument row={row!r}: {plugins.did_you_mean(row, _ROWS)}")
    config = base.default("vkd", network=network, teacher=teacher, data=data)
    config.data.num_tasks = 1
    config.train.update(epochs=300, batch_size=512)
    config.eval.every_epochs = 1
    config.optim.update(name="adamw", learning_rate=5e-4, schedule="cosine", final_rate=5e-6, weight_decay=0.05)
    config.optim.undecayed = ("projector", "pos_embed", "cls_token", "dist_token")
    config.augment.update(train="random_resized_crop", flip=True, test="resize_center_crop")
    config.augment.update(interpolation="bicubic", three_augment=True, jitter=0.3)
    config.augment.update(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225))
    config.distill.update(_ROWS[row])
    config.distill.reference_exact = reference
    return config


def irrelevant(config: dict) -> tuple[str, ...]:
    """Prefixes of keys of a flat config without effect: which of a run's checkpoints a teacher of a file has."""
    del config
    return ("vkd.teacher_checkpoint", "vkd.teacher_network")
