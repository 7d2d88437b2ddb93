"""DKT: a step of two learners that teach each other, against PyTorch.

    python -m benchmarks.run dkt [--width 5] [--rounds 7]

A slim ResNet of three stages, its first of `width` channels. Each learner receives the outputs of the
other before the step.
"""

from benchmarks import comparison
from configs import dkt_glyph


def arguments(parser) -> None:
    """Adds the case's options."""
    comparison.arguments(parser)
    parser.add_argument("--width", type=int, default=5, help="channels of the first stage; 20 in the thesis")
    parser.add_argument("--batch", type=int, default=32)


def measure(options) -> dict:
    """Prints the table; returns its figures."""
    config = dkt_glyph.get_config("replay=0,unit=steps,classes=all,kd=0.5")
    config.optim.update(learning_rate=2e-3, schedule="constant")
    config.network.update(width=options.width, image_size=32)  # as the images are
    config.devices, config.augment.train, config.train.batch_size = 1, "none", options.batch

    def make(config, variables, classes, variant):
        from benchmarks.torch_peers.dkt import DKT

        return DKT(config, variables, classes)

    return comparison.measure(f"DKT, width {options.width}", config, make, options, per_learner=True)
