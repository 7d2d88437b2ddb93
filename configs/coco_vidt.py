"""ViDT on COCO: alone, with token matching, or with VkD.

These are the detectors of the papers' tables.

    python -m cdl_jax.main --config configs/coco_vidt.py:student=nano --config.data.path=coco --config.devices=6
    python -m cdl_jax.main --config configs/coco_vidt.py:distill=projected_tokens,teacher=base
    python -m cdl_jax.main --config configs/coco_vidt.py:distill=token_matching,teacher=small,student=tiny
    python -m cdl_jax.main --config configs/coco_vidt.py:student=base,epochs=150 --mode=describe

student    nano, tiny, small or base
distill    none, token_matching or projected_tokens (VkD)
teacher    base or small
epochs     50, or 150
layout     empty, or without_neck: heads on the tokens of the backbone
division   sizes of tasks such as 40+40 or 70+10; empty: one task
seed       42

`python -m cdl_jax.report paper vkd_detection` lists the published results by these arguments. The files of weights are
those that the authors publish, in the current folder: `student.weights` is a Swin classifier, `teacher.weights` a
detector.
"""

from cdl_jax import config as base
from cdl_jax.errors import UserError
from cdl_jax.published import vkd_detection


def get_config(text=""):
    choices = base.arguments(
        text, student="nano", distill="none", teacher="base", epochs=50, layout="", division="", seed=42
    )
    division, seed = choices.pop("division"), choices.pop("seed")
    config = vkd_detection.build(**choices)
    config.seed = seed
    config.data.update(task_sizes(division))
    return config


def task_sizes(division):
    """Returns the options of the data section for a division such as "40+40"."""
    if not division:
        return {"num_tasks": 1, "task_sizes": ()}
    sizes = division.split("+")
    if not all(size.isdecimal() for size in sizes):
        raise UserError(f"config argument division={division!r} must be sizes of tasks such as 40+40")
    return {"num_tasks": len(sizes), "task_sizes": tuple(map(int, sizes))}
