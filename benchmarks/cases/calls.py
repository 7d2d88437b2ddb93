"""Several training steps in one call (`train.steps_per_call`) against one a call.

    python -m benchmarks.run calls [--networks vit cnn] [--most 1 8 32] [--steps 32] [--rounds 7] [--out FILE]

"vit": teacher and student of the quick start; "cnn": the slim ResNet of `configs/dkt_glyph.py`, alone. All ways start
from the same state and train on the same batches. The table has the speed, the difference of their losses after the
first round and the time to compile. Values are medians over the rounds, in which the ways take turns.
"""

import jax
import numpy as np

from benchmarks import timing
from benchmarks.training_state import TrainingState
from cdl_jax import config as base
from cdl_jax.training.state import position
from configs import quickstart

HEAD = ("network", "steps a call", "steps a second (quartiles)", "of one a call", "compilation, s", "max loss diff")


def arguments(parser) -> None:
    """Adds the case's options."""
    parser.add_argument("--networks", nargs="+", choices=("vit", "cnn"), default=("vit", "cnn"))
    parser.add_argument("--most", nargs="+", type=int, default=(1, 8, 32), help="steps a call; the first is the base")
    parser.add_argument("--steps", type=int, default=32, help="steps of each way in a round, a multiple of all of them")
    parser.add_argument("--batch", type=int, default=0, help="number of images; 0: that of the config")
    parser.add_argument("--rounds", type=int, default=7)


def measure(options) -> dict:
    """Prints the table; returns its figures."""
    found, rows = [], []
    for network in options.networks:
        config = quickstart.get_config() if network == "vit" else _slim_resnet()
        config.train.batch_size = options.batch or config.train.batch_size
        phases = TrainingState(config).phases
        for index, phase in enumerate(phases):
            ways = {most: _Way(config, index, most, options.steps) for most in options.most}
            for way in ways.values():
                way.seconds()
            losses = {most: float(way.learning.loss(index)) for most, way in ways.items()}
            differences = timing.loss_differences(losses, options.most[0])
            timing.check_equal("the loss", differences, dict.fromkeys(ways, 1e-3))
            turns = {most: lambda way=way: options.steps / way.seconds() for most, way in ways.items()}
            timed = timing.compare(timing.alternate(turns, options.rounds), options.most[0])
            for most, one in timed.items():
                figures = {"network": phase.name, "steps_a_call": most, "per_second": one}
                found.append({**figures, "difference": differences[most], "compilation": ways[most].compilation})
                speed = f"{one['median']:.1f} ({one['q1']:.1f}-{one['q3']:.1f})"
                rows.append((f"{network}, {phase.name}", most, speed, f"{one['ratio']:.2f}",
                             f"{ways[most].compilation:.1f}", f"{differences[most]:.0e}"))  # fmt: skip
    print(timing.markdown(HEAD, rows))
    return {"calls": found}


class _Way:
    """Trains a phase in calls of `most` steps, on the same `steps` batches each time."""

    def __init__(self, config, index, most, steps):
        self.learning = TrainingState(config)
        program, task, phase = self.learning.experiment, self.learning.task, self.learning.phases[index]
        start = timing.now()
        self.step = self.learning.steps.train_step(index, 0, most)
        self.compilation = timing.now() - start
        each = program.steps_per_epoch(task, phase)
        full_calls, rest = divmod(each * program.epochs(task, phase), most)
        lengths = [most] * full_calls + [1] * rest
        items = self.learning.steps.train_batches(task, phase, 0, 0, None, lengths)
        firsts = range(0, steps, most)
        numbers = [np.arange(first, first + most) if most > 1 else first for first in firsts]
        places = [position(task, epoch=n // each, step=n % each, steps=each) for n in numbers]
        self.calls = [(item, place) for place, item in zip(places, items, strict=False)]

    def seconds(self):
        """Of the steps, from where the last ones ended."""
        learning, program = self.learning, self.learning.experiment
        start = timing.now()
        for item, place in self.calls:
            arguments = learning.frozen, learning.steps.train_loader.data, item, place, program.seed
            learning.state = self.step(learning.state, *arguments)
        jax.block_until_ready(learning.state.mutable)
        return timing.now() - start


def _slim_resnet():
    config = base.default("supervised", data="glyph_mini", network="slim_resnet18")
    config.network.update(width=8, depths=(1, 1, 1), image_size=16, weights="random")
    config.augment.update(train="shift", test="resize")
    config.train.update(epochs=8, batch_size=16)
    return config
