"""Colored emoji, 10 tasks of 40 emoji: any learner with any scheme.

Training images are drawings of three vendors, test images those of a fourth. Learners and schemes are those of
configs/glyph100.py.

    for network in teacher student; do
      python -m cdl_jax.main --config configs/pretrain_glyph.py:network=glyph_$network,data=emoji_file \
          --workdir runs/emoji_vits/pretrain/$network --config.data.path=emoji32.npz
    done
    python -m cdl_jax.main --config configs/emoji.py:distill=kdp --workdir runs/emoji_vits/l2p/kdp/seed_0 \
        --config.data.path=emoji32.npz \
        --config.teacher.weights=runs/emoji_vits/pretrain/teacher/weights.npz \
        --config.student.weights=runs/emoji_vits/pretrain/student/weights.npz

label      identity; or subgroup: 13 tasks of 5 Unicode subgroups, tested on other emoji. The networks above were
           pretrained on these, so subgroups need backbones that were pretrained on other images.
teacher, student   sizes of ViTs; vit_s14 is DINOv2-small's (docs/guides/data.md), which also needs
                   --config.teacher.image_size=112 --config.student.image_size=112 --config.teacher.layer_scale=1
learner, distill, teacher_run, seed, joint   as in configs/glyph100.py; a run of configs/reference.py can be the teacher

An identity has three training images, so a task has small batches and ten epochs. `launch/emoji.sh`
makes all runs of docs/results/emoji.md.
"""

from cdl_jax import config as base
from cdl_jax.errors import UserError

SMALL = {
    "l2p": {"pool": 10, "length": 2, "top_k": 1},
    "dualprompt": {"length": 4, "general_length": 2},
    "coda": {"length": 4},
    "os_prompt": {"length": 4},
    "ranpac": {"projection": 1000},
}
ROWS = {"kd_token": ("kd_token", {"variant": "deit"}), "kdp": ("kd_token", {"variant": "dcdl"})}
TASKS = {"identity": 10, "subgroup": 13}


def get_config(text=""):
    choices = base.arguments(
        text, label="identity", learner="l2p", distill="kd", teacher="glyph_teacher", student="glyph_student",
        teacher_run="", seed=0, joint=False,
    )  # fmt: skip
    if choices["label"] not in TASKS:
        raise UserError(f"config argument label={choices['label']!r}: use {' or '.join(TASKS)}")
    learner, (scheme, options) = choices["learner"], ROWS.get(choices["distill"], (choices["distill"], {}))
    networks = {name: choices[name] for name in ("teacher", "student")}
    config = base.default("cdl", data="emoji_file", learner=learner, distill=scheme, **networks)
    config.seed = choices["seed"]
    num_tasks = 1 if choices["joint"] else TASKS[choices["label"]]
    config.data.update(label=choices["label"], stream_classes=400, num_tasks=num_tasks)
    config.data.update(class_order="shuffle", class_order_seed=choices["seed"])
    config.augment.train = "shift"
    config.train.epochs = 5
    if choices["label"] == "identity":
        config.train.update(epochs=10, batch_size=16)
    config.optim.learning_rate = 5e-3
    config.learner.update(SMALL.get(learner, {}))
    if learner in ("coda", "os_prompt"):  # the components are divided among the tasks
        config.learner.pool = 5 * 10 if choices["label"] == "identity" else 3 * 13
    config.distill.update(options)
    config.cdl.update(schedule="teacher_first", student_schedule="")
    if "key_loss" in config.learner:
        config.learner.key_loss = "mean"
    if choices["teacher_run"]:
        config.cdl.teacher_runs = (choices["teacher_run"],)
    config.eval.forward_transfer = False
    config.checkpoint.every_steps = 0
    return config
