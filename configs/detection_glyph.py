"""Small ViDT detectors learn glyph scenes in minutes on a CPU.

A detector learns alone, from a larger detector, or in a stream of 3 tasks.

    python -m cdl_jax.data.tools.make_glyph_scenes --out data/glyph_scenes
    python -m cdl_jax.main --config configs/detection_glyph.py:size=large --workdir runs/scenes/teacher
    python -m cdl_jax.main --config configs/detection_glyph.py --workdir runs/scenes/alone
    python -m cdl_jax.main --config configs/detection_glyph.py:distill=projected_tokens,teacher=runs/scenes/teacher
    python -m cdl_jax.main --config configs/detection_glyph.py:tasks=3,past=1.0

Arguments: distill=none, token_matching or projected_tokens; teacher, the folder of a finished run of size=large, or
"beside": the teacher learns beside the student; tasks=1 or 3 (4, 3 and 3 characters); past, the weight of the student's
own predictions before a task; size=small or large, of the detector without a teacher; epochs; seed.
"""

from cdl_jax import config as base
from cdl_jax.errors import UserError

# 0.7 million parameters; and the smaller student.
LARGE = {
    "embed_dim": 16, "depths": (1, 1, 2, 1), "heads": (1, 2, 4, 8), "window": 4, "dim": 64, "decoder_heads": 4,
    "decoder_layers": 3, "hidden": 128, "dropout": 0.0, "queries": 20, "weights": "random",
}  # fmt: skip
SMALL = {**LARGE, "embed_dim": 8, "depths": (1, 1, 1, 1)}


def get_config(text=""):
    choices = base.arguments(text, distill="none", teacher="", tasks=1, past=0.0, size="small", epochs=12, seed=0)
    sizes, distill = {"small": SMALL, "large": LARGE}, choices["distill"]
    if choices["size"] not in sizes:
        raise UserError(f"config argument size={choices['size']!r}: use small or large")
    if choices["tasks"] not in (1, 3):
        raise UserError(f"config argument tasks={choices['tasks']}: use 1 or 3")
    config = base.default("vidt", data="coco", distill=distill)
    config.seed = choices["seed"]
    config.data.path = "data/glyph_scenes"
    config.data.num_tasks, config.data.task_sizes = (1, ()) if choices["tasks"] == 1 else (3, (4, 3, 3))
    config.student.update(sizes[choices["size"]])
    config.augment.update({"scales": (), "crop": 0.0, "eval_size": 0, "canvases": (), "group_size": 8})
    config.vidt.solver = "device"  # a step with the callback of "host" is compiled anew in each run
    config.train.epochs = choices["epochs"]
    config.train.batch_size = 8
    config.eval.batch_size = 32
    config.eval.forward_transfer = False
    config.optim.learning_rate = 1e-3
    config.optim.end_learning_rate = 1e-5
    if choices["past"]:
        config.vidt.past_weight = choices["past"]
        config.vidt.classes = "current"
    if distill != "none":
        beside = choices["teacher"] == "beside"
        config.vidt.teacher_training = "beside" if beside else "frozen"
        config.teacher.update(LARGE)
        config.teacher.weights = "random" if beside else choices["teacher"]
    return config
