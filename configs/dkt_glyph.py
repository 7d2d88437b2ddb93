"""Learners that teach each other on streams of characters, on a CPU.

    python -m cdl_jax.main --config configs/dkt_glyph.py --workdir runs/dkt/two
    python -m cdl_jax.main --config configs/dkt_glyph.py:learners=4,topology=ring,interval=5 --workdir runs/dkt/ring4
    python -m cdl_jax.main --config configs/dkt_glyph.py:topology=none --workdir runs/dkt/alone
    python -m cdl_jax.main --config configs/dkt_glyph.py:learner=l2p --workdir runs/dkt/l2p

20 characters in five tasks, tested in other fonts. Each learner has its own class order (`order`, see
cdl_jax/methods/shared/topology.py), which differs between seeds. Learners exchange at every `interval`th `unit`.

learner   cnn, a slim ResNet of eight channels on images of 16 pixels, or one of models/learners around the pretrained
          ViT of the quick start
replay    how many images each learner stores
classes   the classes that the loss spans, see methods/dkt.py; "": those seen so far, or for a prompt learner without a
          memory those of the task
teacher   the working directory of a finished run that teaches one learner, instead of other learners; `checkpoint`: its
          checkpoint after the same_task, or the last
"""

from cdl_jax import config as base


def get_config(text=""):
    choices = base.arguments(
        text, learners=2, learner="cnn", topology="full", mode="state", interval=1, unit="epochs", order="shuffled",
        replay=40, kd=0.05, classes="", teacher="", checkpoint="same_task", tasks=5, epochs=10, seed=0,
    )  # fmt: skip
    learner, seed = choices["learner"], choices["seed"]
    network = "slim_resnet18" if learner == "cnn" else "mini_student"
    config = base.default("dkt", data="glyph_mini", network=network, learner=learner)
    config.seed = seed
    config.data.update(num_tasks=choices["tasks"], class_order="shuffle", class_order_seed=seed)
    config.augment.train = "shift"
    config.train.epochs = choices["epochs"]
    # Running statistics lag: if weights still change at the end of a task, the statistics belong to older weights.
    config.optim.update(learning_rate=0.01, schedule="cosine", clip_norm=5.0)
    if learner == "cnn":
        config.network.update(width=8, depths=(1, 1, 1), image_size=16)
        config.augment.test = "resize"
        config.train.batch_size = 16
    else:
        config.network.weights = "package:glyph_mini_student"
        config.learner.update({"l2p": {"pool": 10, "length": 2, "top_k": 2}}.get(learner, {}))
        config.train.batch_size = 32
        config.optim.learning_rate = 5e-3
    config.dkt.update(
        num_learners=1 if choices["teacher"] else choices["learners"],
        topology=choices["topology"],
        exchange_mode=choices["mode"],
        exchange_interval=choices["interval"],
        exchange_unit=choices["unit"],
        stream_order="same" if choices["teacher"] else choices["order"],
        stream_seed=seed,
        replay=choices["replay"],
        kd_rel=choices["kd"],
        classes=choices["classes"] or ("seen" if choices["replay"] or learner == "cnn" else "current"),
        teacher_runs=(choices["teacher"],) if choices["teacher"] else (),
        teacher_checkpoint=choices["checkpoint"],
        public=200,
        public_batch=32,
    )
    config.eval.forward_transfer = False
    return config
