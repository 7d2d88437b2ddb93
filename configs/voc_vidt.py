"""ViDT on Pascal VOC 2007 in tasks of 10+10, 15+5 or 19+1 classes.

The student's past and a teacher are optional.

    python -m cdl_jax.data.tools.voc_to_coco --voc VOCdevkit/VOC2007 --list trainval --out voc2007
    python -m cdl_jax.data.tools.voc_to_coco --voc VOCdevkit/VOC2007 --list test --out voc2007
    python -m cdl_jax.main --config configs/voc_vidt.py:division=15+5
    python -m cdl_jax.main --config configs/voc_vidt.py:division=15+5,past=1.0
    python -m cdl_jax.main --config configs/voc_vidt.py:division=10+10,distill=projected_tokens

division   10+10, 15+5 or 19+1; empty: all classes in one task
past       weight of the student's own predictions before a task
distill    none, token_matching or projected_tokens (VkD): the teacher learns beside the student
student    nano, tiny, small or base
teacher    base or small
epochs     of each task
seed       42

Classes are in alphabetical order. `student.weights` and `teacher.weights` are Swin classifiers, see `coco_vidt.py`.
Nobody has published ViDT in these tasks, so there is no number to reach.
"""

from cdl_jax import config as base
from cdl_jax.errors import UserError
from cdl_jax.published import vkd_detection

DIVISIONS = {"": (), "10+10": (10, 10), "15+5": (15, 5), "19+1": (19, 1)}


def get_config(text=""):
    choices = base.arguments(
        text, division="15+5", past=0.0, distill="none", student="nano", teacher="base", epochs=50, seed=42
    )
    division, past, seed = (choices.pop(key) for key in ("division", "past", "seed"))
    if division not in DIVISIONS:
        raise UserError(f"config argument division={division!r}: use 10+10, 15+5 or 19+1")
    config = vkd_detection.build(**choices)
    config.seed = seed
    config.data.path, config.data.train_part, config.data.test_part = "voc2007", "trainval", "test"
    config.data.num_tasks, config.data.task_sizes = len(DIVISIONS[division]) or 1, DIVISIONS[division]
    if past:
        config.vidt.past_weight = past
        config.vidt.classes = "current"
    if config.distill.name != "none":
        config.vidt.teacher_training = "beside"
        config.teacher.weights = vkd_detection.BACKBONES[choices["teacher"]]
    return config
