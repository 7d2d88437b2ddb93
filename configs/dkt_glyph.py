"""Learners that teach each other on streams of characters, in fonts never seen, on a CPU.

    python -m cdl_jax.main --config configs/dkt_glyph.py --workdir runs/dkt/two
    python -m cdl_jax.main --config configs/dkt_glyph.py:learners=4,topology=ring,interval=4 --workdir runs/dkt/ring4
    python -m cdl_jax.main --config configs/dkt_glyph.py:topology=none --workdir runs/dkt/alone
    python -m cdl_jax.main --config configs/dkt_glyph.py:learner=l2p --workdir runs/dkt/l2p

20 characters in five tasks; each learner meets them in an order of its own (`order`, see methods/topology.py) and hears
the others at every `interval`th step. learner: cnn, a slim ResNet of five channels, or one of models/prompts around the
pretrained ViT of the quick start.
"""

from cdl_jax import config as base


def get_config(text=""):
    choices = base.arguments(
        text, learners=2, learner="cnn", topology="full", mode="state", interval=1, order="independent", replay=100,
        kd=0.5, epochs=10, seed=0,
    )  # fmt: skip
    learner = choices["learner"]
    network = "slim_resnet18" if learner == "cnn" else "mini_student"
    config = base.default("dkt", data="glyph_mini", network=network, learner=learner)
    if learner == "cnn":
        config.network.update(width=5, depths=(1, 1, 1))
    else:
        config.dkt.classes = "seen" if choices["replay"] else "current"
        config.network.weights = "package:glyph_mini_student"
        config.learner.update({"l2p": {"pool": 10, "length": 2, "top_k": 2}}.get(learner, {}))
    config.seed = choices["seed"]
    config.data.num_tasks = 5
    config.augment.train = "shift"
    config.train.update(epochs=choices["epochs"], batch_size=32)
    config.dkt.update(
        num_learners=choices["learners"],
        topology=choices["topology"],
        exchange_mode=choices["mode"],
        exchange_interval=choices["interval"],
        stream_order=choices["order"],
        replay=choices["replay"],
        kd_rel=choices["kd"],
        public=200,
        public_batch=32,
    )
    config.optim.update(learning_rate=2e-3, schedule="constant", clip_norm=5.0)
    config.eval.forward_transfer = False
    return config
