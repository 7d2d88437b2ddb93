"""Distills a pretrained ViT into a smaller one on characters, without labels.

The characters are in no stream of this family.

    python -m cdl_jax.main --config configs/distill_glyph.py --workdir runs/distilled/seed_0 \
        --config.data.path=glyph_pretrain354.npz --config.teacher.weights=glyph_teacher.npz \
        --config.student.weights=glyph_student.npz
    python -m cdl_jax.main --config configs/glyph100.py:learner=simple_cil,distill=none --workdir runs/stream/seed_0 \
        --config.data.path=glyph100.npz --config.student.weights=runs/distilled/seed_0/weights.npz

The student's class token is mapped linearly into the teacher's width. The loss is the squared distance to the teacher's
class token, after both are normalized over their channels. The teacher's outputs are computed once, so images are not
augmented.

match      features: the class token; logits: the teacher's probabilities of the 354 characters; both; labels: the
           student alone with the labels, as a control of the same length
epochs     passes over the images

`launch/glyph100_goal.sh` makes the runs of docs/results/glyph100_goal.md.
"""

from cdl_jax import config as base
from cdl_jax.errors import UserError

# Weights of the loss of features, of logits and of labels.
WEIGHTS = {"features": (1.0, 0.0, 0.0), "logits": (0.0, 1.0, 0.0), "both": (1.0, 1.0, 0.0), "labels": (0.0, 0.0, 1.0)}


def get_config(text=""):
    choices = base.arguments(text, match="features", epochs=1, seed=0)
    if choices["match"] not in WEIGHTS:
        raise UserError(f"config argument match={choices['match']!r}: use {', '.join(WEIGHTS)}")
    config = base.default("vkd", data="glyph_file", network="glyph_student", teacher="glyph_teacher")
    config.seed = choices["seed"]
    config.data.num_tasks = 1
    config.vkd.cache_teacher = True
    config.mixing.update(mixup=0.0, cutmix=0.0)
    feature, logit, label = WEIGHTS[choices["match"]]
    config.distill.update(feature_weight=feature, logit_weight=logit, label_weight=label)
    config.distill.update(student_feature="class_token", teacher_feature="class_token")
    config.distill.update(projector="linear", student_norm="layer", feature_loss="mse")
    config.train.update(epochs=choices["epochs"], batch_size=128)
    config.optim.update(name="adamw", learning_rate=2e-3, schedule="cosine", warmup_epochs=0.2, weight_decay=0.05)
    config.optim.update(betas=(0.9, 0.98), clip_norm=1.0)
    config.eval.forward_transfer = False
    config.checkpoint.every_steps = 0
    return config
