"""Several seeds in one program against the same seeds one after another: training steps of the quick start.

    python -m benchmarks.seeds [--count 3] [--rounds 7] [--steps 20] [--out FILE.json]

Both sides train in this process, in turns, after their losses were found equal; told are the medians over the rounds.
"""

import argparse
import json
import statistics
import time
from pathlib import Path

import jax
import numpy as np

from cdl_jax import trainer
from cdl_jax.data import stream
from cdl_jax.program import Program
from configs import quickstart


class Side:
    """A program about to learn its first task."""

    def __init__(self, seeds, **choices):
        config = quickstart.get_config()
        config.update(choices)
        if len(seeds) > 1:
            config.seeds = tuple(seeds)
        else:
            (config.seed,) = seeds
        self.program = Program(config, stream.load(config.data))
        self.program.place_data()
        self.task = self.program.stream.tasks[0]
        live, self.frozen = self.program.initial_variables()
        live = self.program.start_task(live, self.frozen, trainer.position(self.task))
        self.state = self.program.task_state(live, self.frozen)
        self.compiled = [self.program.train_step(i, self.state, self.frozen) for i in self.phases]

    @property
    def phases(self):
        return range(len(self.program.method.phases))

    def seconds(self, index, steps):
        """Of `steps` training steps of a phase; the state goes on."""
        items, per_epoch, _ = self.program.train_batches(self.task, self.program.method.phases[index], 0, 0, 0)
        items = [item for item, _ in zip(items, range(steps), strict=False)]
        start = time.perf_counter()
        for number, item in enumerate(items):
            place = trainer.position(self.task, epoch=number // per_epoch, step=number % per_epoch, steps=per_epoch)
            data, seed = self.program.train_source.data, self.program.seed
            self.state = self.compiled[index](self.state, self.frozen, data, item, place, seed)
        jax.block_until_ready(self.state.live)
        return time.perf_counter() - start

    def loss(self, index):
        """Mean loss of the phase's steps so far, for each seed."""
        sums = jax.device_get(self.state.sums[index])
        return np.atleast_1d(sums["loss"] / sums["steps"])


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3, help="seeds")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="training steps of a phase in each round")
    parser.add_argument("--out", type=Path, help="file for the figures as JSON")
    options = parser.parse_args()
    seeds = range(options.count)
    together, alone = Side(seeds), [Side([seed]) for seed in seeds]
    found = {}
    print("| phase | one after another, ms a step | together, ms a step | ratio |\n|---|---|---|---|")
    for index in together.phases:
        sides = [together, *alone]
        for side in sides:
            side.seconds(index, options.steps)
        np.testing.assert_allclose(together.loss(index), [side.loss(index)[0] for side in alone], rtol=1e-4)
        times = {"together": [], "alone": []}
        for _ in range(options.rounds):
            times["together"].append(together.seconds(index, options.steps))
            times["alone"].append(sum(side.seconds(index, options.steps) for side in alone))
        of = {name: 1e3 * statistics.median(values) / options.steps for name, values in times.items()}
        phase = together.program.method.phases[index].name
        found[phase] = {**of, "ratio": of["alone"] / of["together"]}
        print(f"| {phase} | {of['alone']:.1f} | {of['together']:.1f} | {found[phase]['ratio']:.2f} |", flush=True)
    if options.out:
        told = {"device": jax.devices()[0].device_kind, "seeds": options.count, "milliseconds": found}
        options.out.write_text(json.dumps(told, indent=1) + "\n")


if __name__ == "__main__":
    main()
