"""Several seeds in one program against the same one after another: steps of the quick start, and short runs of it.

    python -m benchmarks.seeds [--count 3] [--rounds 7] [--steps 20] [--runs 3] [--epochs 2] [--out FILE.json]

Both sides train in this process, in turns, after their losses were found equal; told are the medians over the rounds. A
run is all that the command does, from reading the data to writing the report, its compilation included, on the quick
start's five tasks with fewer epochs; both sides must end with equal accuracies.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from pathlib import Path

import jax
import numpy as np

from cdl_jax import run, trainer, workdir
from cdl_jax.data import stream
from cdl_jax.program import Program
from configs import quickstart


def configured(seeds):
    """The quick start's config for one seed, or for several in one program."""
    config = quickstart.get_config()
    if len(seeds) > 1:
        config.seeds = tuple(seeds)
    else:
        (config.seed,) = seeds
    return config


class Side:
    """A program about to learn its first task."""

    def __init__(self, seeds):
        config = configured(seeds)
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


def whole_run(seeds, epochs):
    """(seconds of a run of so many epochs a task, {seed: accuracy matrices})."""
    config = configured(seeds)
    config.train.epochs = epochs
    config.log.tensorboard = False
    with tempfile.TemporaryDirectory() as folder:
        start = time.perf_counter()
        contents = run.train(Program(config, stream.load(config.data)), Path(folder))
        seconds = time.perf_counter() - start
    return seconds, {c["seed"]: {n: net["accuracy_matrix"] for n, net in c["networks"].items()} for c in contents}


def whole_runs(seeds, epochs, rounds):
    """Median seconds of both sides, by `together` and `alone`.

    Raises:
      AssertionError: the sides end with different accuracies.
    """
    times = {"together": [], "alone": []}
    for _ in range(rounds):
        seconds, together = whole_run(seeds, epochs)
        times["together"].append(seconds)
        seconds, alone = zip(*(whole_run([seed], epochs) for seed in seeds), strict=True)
        times["alone"].append(sum(seconds))
        assert together == {seed: found for one in alone for seed, found in one.items()}
    return {side: statistics.median(values) for side, values in times.items()}


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=3, help="seeds")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="training steps of a phase in each round")
    parser.add_argument("--runs", type=int, default=3, help="rounds of short runs; 0: only steps")
    parser.add_argument("--epochs", type=int, default=2, help="epochs a task of a short run")
    parser.add_argument("--out", type=Path, help="file for the figures as JSON")
    options = parser.parse_args()
    seeds = list(range(options.count))
    together, alone = Side(seeds), [Side([seed]) for seed in seeds]
    found = {}
    print("| what | one after another | together | ratio |\n|---|---|---|---|")
    for index in together.phases:
        sides = [together, *alone]
        for side in sides:
            side.seconds(index, options.steps)
        np.testing.assert_allclose(together.loss(index), [side.loss(index)[0] for side in alone], rtol=1e-4)
        times = {"together": [], "alone": []}
        for _ in range(options.rounds):
            times["together"].append(together.seconds(index, options.steps))
            times["alone"].append(sum(side.seconds(index, options.steps) for side in alone))
        found[together.program.method.phases[index].name] = _told(
            f"a step of the {together.program.method.phases[index].name}",
            {side: 1e3 * statistics.median(values) / options.steps for side, values in times.items()},
            "ms",
        )
    if options.runs:
        found["run"] = _told(
            f"a run of {options.epochs} epochs a task", whole_runs(seeds, options.epochs, options.runs), "s"
        )
    if options.out:
        machine = {"device": jax.devices()[0].device_kind, "cores": os.cpu_count(), "versions": workdir.versions()}
        options.out.write_text(json.dumps({**machine, "seeds": seeds, "medians": found}, indent=1) + "\n")


def _told(what, medians, unit):
    ratio = medians["alone"] / medians["together"]
    print(f"| {what} | {medians['alone']:.1f} {unit} | {medians['together']:.1f} {unit} | {ratio:.2f} |", flush=True)
    return {**medians, "unit": unit, "ratio": ratio}


if __name__ == "__main__":
    main()
