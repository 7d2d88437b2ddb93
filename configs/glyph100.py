"""Split-Glyph-100, 10 tasks of 10 characters: any learner with any scheme.

Teacher and student are two small ViTs, tested in other fonts.

    python -m cdl_jax.main --config configs/glyph100.py --workdir runs/glyph100/l2p/kd/seed_0 \
        --config.data.path=glyph100.npz --config.teacher.weights=glyph_teacher.npz \
        --config.student.weights=glyph_student.npz
    python -m cdl_jax.main --config configs/glyph100.py:distill=dkd,teacher_run=runs/glyph100/l2p/kd/seed_0 \
        --workdir runs/glyph100/l2p/dkd/seed_0 --config.data.path=glyph100.npz \
        --config.student.weights=glyph_student.npz

learner    l2p, dualprompt, coda, apt, os_prompt; simple_cil, ranpac, aper, ease, slca, lae, lora, fine_tuning;
           none: a linear probe
distill    none, or a row of the table: kd, dkd, fitnets, reviewkd, vkd; kd_token, an additional token with its own head
           (version 2 of CDL); kdp, the same with additional prompts (KDP, D-CDL); prompt_mapping (CDL-Prompt)
teacher_run  the working directory of a finished run of this stream; its teacher after each task is the teacher; "": a
           teacher that trains in the same run. Both give the same, because a teacher does not depend on its student.
           Exceptions: LAE, whose average has one more step, and APT with learner.teacher_prompts=merged
teacher_query  the backbone that computes the query of the teacher's pool: student (as published) or teacher
seed       of the run and of the class order; for several in one program see CDL_TOGETHER in launch/glyph100.sh
joint      all classes in one task

Backbones come from `configs/pretrain_glyph.py`, which uses none of the 100 characters. `launch/glyph100.sh` makes
all runs of docs/results/glyph100.md and docs/results/ablations.md.
"""

from cdl_jax import config as base

# Learners for a backbone of 64 dimensions: long prompts of U[0, 1) numbers would dominate its tokens, and a projection
# that is as wide as published would not gain from so few features.
SMALL = {
    "l2p": {"pool": 10, "length": 2, "top_k": 1},
    "dualprompt": {"length": 4, "general_length": 2},
    "coda": {"pool": 50, "length": 4},
    "os_prompt": {"pool": 50, "length": 4},
    "ranpac": {"projection": 1000},
}

# Rows that are a scheme with options.
ROWS = {
    "kd_token": ("kd_token", {"variant": "deit"}),
    "kdp": ("kd_token", {"variant": "dcdl"}),
}


def get_config(text=""):
    choices = base.arguments(
        text, learner="l2p", distill="kd", teacher="glyph_teacher", student="glyph_student", teacher_run="",
        teacher_query="student", seed=0, joint=False, tasks=10,
    )  # fmt: skip
    learner = choices["learner"]
    scheme, options = ROWS.get(choices["distill"], (choices["distill"], {}))
    config = base.default(
        "cdl", data="glyph_file", learner=learner, distill=scheme, teacher=choices["teacher"],
        student=choices["student"],
    )  # fmt: skip
    config.seed = choices["seed"]
    config.data.update(num_tasks=1 if choices["joint"] else choices["tasks"])
    config.data.update(class_order="shuffle", class_order_seed=choices["seed"])
    config.data.update(max_train_per_class=100, max_test_per_class=20)
    config.augment.train = "shift"
    config.train.epochs = 5
    config.optim.learning_rate = 5e-3
    config.learner.update(SMALL.get(learner, {}))
    config.distill.update(options)
    # Every scheme has the same teacher and number of steps, also the one that was published with interleaved training.
    config.cdl.update(schedule="teacher_first", student_schedule="", teacher_query=choices["teacher_query"])
    if "key_loss" in config.learner:
        config.learner.key_loss = "mean"
    if choices["teacher_run"]:
        config.cdl.teacher_runs = (choices["teacher_run"],)
    config.eval.forward_transfer = False
    config.checkpoint.every_steps = 0
    return config
