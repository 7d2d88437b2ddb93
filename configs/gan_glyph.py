"""A small BigGAN draws 10 characters from few images, on a CPU.

The BigGAN trains plain, or with a ViT that teaches the discriminator.

    python -m cdl_jax.main --config configs/gan_glyph.py:row=da --workdir runs/gan/da/seed_0 \
        --config.data.path=glyph100.npz --config.measuring.weights=glyph_vit_student.npz
    python -m cdl_jax.main --config configs/gan_glyph.py:row=replaced,weight=1 --workdir runs/gan/replaced/seed_0 \
        --config.data.path=glyph100.npz --config.measuring.weights=glyph_vit_student.npz \
        --config.teacher.weights=glyph_vit_teacher.npz

row      da, without a teacher; aggregated, KD-DLGAN's term; literal, replaced: our readings of VkD
norm     of the teacher's vectors: whiten, layer, none
scope    of the whitening: each, joint, data
projector  of VkD: "" (orthogonal) or linear
weight   of VkD's term
kd_weight  of KD-DLGAN's term, in the rows aggregated and literal
control  "", shuffled (the teacher's vectors are of other images) or random (a teacher with random weights)
images   training images of a character
iterations  steps of the generator, rounded to epochs

Both ViTs come from configs/pretrain_glyph.py and know none of the 10 characters. docs/guides/data.md shows how to draw
glyph100.npz. launch/gan.sh trains the runs of docs/methods/generation.md.
"""

from cdl_jax import config as base
from cdl_jax.errors import UserError

ROWS = ("da", "aggregated", "literal", "replaced")
BATCH = 20


def get_config(text=""):
    choices = base.arguments(
        text, row="replaced", norm="whiten", scope="each", projector="", weight=1.0, kd_weight=1.0, control="",
        images=20, iterations=1500, width=4, seed=0,
    )  # fmt: skip
    row, control = choices["row"], choices["control"]
    if row not in ROWS or control not in ("", "shuffled", "random"):
        raise UserError(f"config arguments row={row}, control={control}: rows are {', '.join(ROWS)}, controls shuffled "
                        "and random")  # fmt: skip
    config = base.default("gan", data="glyph_file", teacher="glyph_teacher", measuring="glyph_student")
    config.seed = choices["seed"]
    config.data.update(num_tasks=1, class_order=",".join(map(str, range(10))), max_train_per_class=choices["images"])
    config.augment.update(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5))
    config.gan.update(width=choices["width"], z_dim=32, d_steps=1, ema_decay=0.99, ema_start=100, policy="translation")
    config.gan.update(generated=1000, teacher_pixels="unit", kd_head=(32, 128))
    config.gan.update(vkd_norm=choices["norm"], vkd_scope=choices["scope"], vkd_projector=choices["projector"])
    if row == "aggregated":
        config.gan.kd_terms = ("aggregated",)
    elif row != "da":
        config.gan.update(vkd=row, vkd_weight=choices["weight"])
    config.gan.kd_weight = choices["kd_weight"]
    config.gan.teacher_shuffled = control == "shuffled"
    config.measuring.weights = "glyph_vit_student.npz"
    if row != "da":
        config.teacher.weights = "random" if control == "random" else "glyph_vit_teacher.npz"
    epochs = -(-choices["iterations"] * BATCH // (10 * choices["images"]))
    config.train.update(epochs=epochs, batch_size=BATCH)
    config.eval.update(every_epochs=max(1, epochs // 5), forward_transfer=False)
    config.optim.update(name="adam", learning_rate=2e-4, betas=(0.0, 0.999), schedule="constant")
    config.log.every_steps = 50
    return config
