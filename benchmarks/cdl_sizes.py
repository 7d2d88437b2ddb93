"""The pairs of networks that CDL is timed with, and how much work its steps are."""

from benchmarks import roofline
from cdl_jax import config as base

# Teacher, student, options of both networks, options of the student, images a batch. "tiny" is for CPUs.
SIZES = {
    "tiny": ("vit_ti16", "vit_ti16", {"image_size": 64, "patch_size": 8}, {"dim": 128, "depth": 6, "heads": 4}, 16),
    "s_ti": ("vit_s16", "vit_ti16", {}, {}, 64),
    "b_s": ("vit_b16", "vit_s16", {}, {}, 64),
    "l_b": ("vit_l16", "vit_b16", {}, {}, 32),
}
LEARNERS = ("l2p", "dualprompt", "coda", "apt")
SCHEMES = ("kd", "kd_token")
TASKS = 10


def config(size: str, learner: str, scheme: str, bfloat16: bool = False):
    """Makes the config of a run with random weights and without augmentation.

    Images have the networks' size.
    """
    teacher, student, shared, own, batch = SIZES[size]
    made = base.default("cdl", data="glyph_mini", learner=learner, distill=scheme, teacher=teacher, student=student)
    for section in (made.teacher, made.student):
        section.update(weights="random", dtype="bfloat16" if bfloat16 else "float32", **shared)
    made.student.update(own)
    made.train.update(batch_size=batch, epochs=2)
    made.eval.batch_size = batch
    made.devices = 1  # the other side has one
    return made


def work(made, phase: str) -> roofline.Work:
    """Returns the work of a step, or of the evaluation of a batch.

    phase: "teacher", "student" or "evaluation". The queries of an evaluated batch are given and not counted.
    """
    batch, size = made.train.batch_size, 2 if made.student.dtype == "bfloat16" else 4
    own, extra = keys(made, made.student.depth), 0
    if made.distill.name == "kd_token":
        extra, half = 1, made.distill.length // 2
        own = [own[0], *(count + half for count in own[1:])]
    query = roofline.forward(made.student, batch, size=size)
    teacher = keys(made, made.teacher.depth)
    if phase == "teacher":
        return query + roofline.training(made.teacher, batch, 0, teacher, size)
    teacher_forward = roofline.forward(made.teacher, batch, 0, teacher, size)
    if phase == "evaluation":
        return teacher_forward + roofline.forward(made.student, batch, extra, own, size)
    return query + teacher_forward + roofline.training(made.student, batch, extra, own, size)


def keys(made, depth: int) -> list[int]:
    """Returns the number of keys that the learner's prompts add to each block.

    depth: number of blocks.
    """
    learner = made.learner
    if learner.name == "l2p":
        brought = [learner.top_k * learner.length // 2] * (5 if learner.deep else 1)
    elif learner.name == "dualprompt":
        general, expert = learner.general_length // 2, learner.length // 2
        brought = [general] * learner.general_layers + [expert] * learner.expert_layers
    else:
        brought = [learner.length // 2] * learner.layers if learner.name == "coda" else []
    return (brought + [0] * depth)[:depth]
