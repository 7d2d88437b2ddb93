"""ViDT on COCO, alone, with token matching, or with VkD: the detectors of the papers' tables.

    python -m cdl_jax.main --config configs/coco_vidt.py:student=nano --config.data.path=coco --config.devices=6
    python -m cdl_jax.main --config configs/coco_vidt.py:distill=projected_tokens,teacher=base
    python -m cdl_jax.main --config configs/coco_vidt.py:distill=token_matching,teacher=small,student=tiny
    python -m cdl_jax.main --config configs/coco_vidt.py:student=base --mode=describe

Arguments: student=nano, tiny, small or base; distill=none, token_matching or projected_tokens (VkD); teacher=small or
base; division, sizes of tasks such as 40+40 or 70+10, empty for one task. The files of weights are those that the
authors publish, in the current folder: `student.weights` is a Swin classifier, `teacher.weights` a detector.
"""

from cdl_jax import config as base
from cdl_jax.errors import UserError

# Swin classifiers: of ViDT's release v0.1-swin (nano) and of Swin's release v1.0.0.
BACKBONES = {
    "nano": "swin_nano_patch4_window7_224.pth",
    "tiny": "swin_tiny_patch4_window7_224.pth",
    "small": "swin_small_patch4_window7_224.pth",
    "base": "swin_base_patch4_window7_224_22k.pth",
}
TEACHERS = ("small", "base")  # 150 epochs


def get_config(text=""):
    choices = base.arguments(text, student="nano", distill="none", teacher="base", division="", seed=42)
    student, teacher, distill = choices["student"], choices["teacher"], choices["distill"]
    if student not in BACKBONES:
        raise UserError(f"config argument student={student!r}: use {', '.join(BACKBONES)}")
    if teacher not in TEACHERS:
        raise UserError(f"config argument teacher={teacher!r}: use {' or '.join(TEACHERS)}")
    config = base.default("vidt", data="coco", student=f"vidt_{student}", teacher=f"vidt_{teacher}", distill=distill)
    config.seed = choices["seed"]
    config.data.update(task_sizes(choices["division"]))
    config.student.weights = BACKBONES[student]
    config.train.epochs = 50
    config.train.batch_size = 12 if distill != "none" else 16  # 6 or 8 devices with 2 images each
    config.eval.batch_size = config.train.batch_size  # has no influence: groups are pairs of neighbors
    config.eval.forward_transfer = False
    config.checkpoint.every_steps = 2000
    if distill != "none":
        config.teacher.weights = f"vidt_{teacher}_150.pth"
    return config


def task_sizes(division):
    """Returns the options of the data section for a division such as "40+40"."""
    if not division:
        return {"num_tasks": 1, "task_sizes": ()}
    sizes = division.split("+")
    if not all(size.isdecimal() for size in sizes):
        raise UserError(f"config argument division={division!r} must be sizes of tasks such as 40+40")
    return {"num_tasks": len(sizes), "task_sizes": tuple(map(int, sizes))}
