"""Several seeds in one program against the same seeds one after another.

    python -m benchmarks.run seeds [--count 3] [--rounds 7] [--steps 20] [--runs 3] [--epochs 2] [--out FILE]

Steps of the quick start and short runs of it are timed. Both sides train in this process, in turns, after a check that
their losses are equal. Values are medians over the rounds. A run is all that the command does, from reading the data to
writing the report, with its compilation. It trains the five tasks of the quick start with fewer epochs. Both sides must
end with equal accuracies.
"""

import statistics
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import timing
from benchmarks.training_state import TrainingState
from cdl_jax import config as configs
from cdl_jax.data import stream
from cdl_jax.run import loop
from cdl_jax.training.experiment import Experiment
from configs import quickstart


def configured(seeds):
    """The quick start's config for one seed, or for many seeds in one program."""
    config = quickstart.get_config()
    if len(seeds) > 1:
        config.seeds = tuple(seeds)
    else:
        (config.seed,) = seeds
    return config


def whole_run(seeds, epochs):
    """Trains `epochs` epochs a task; returns (seconds, {seed: accuracy matrices})."""
    config = configured(seeds)
    config.train.epochs = epochs
    config.log.to = ()
    with tempfile.TemporaryDirectory() as folder:
        start = timing.now()
        contents = loop.train(
            Experiment.build(config, stream.load(config.data, configs.seeds_of(config)[0])), Path(folder)
        )
        seconds = timing.now() - start
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


def arguments(parser) -> None:
    """Adds the case's options."""
    parser.add_argument("--count", type=int, default=3, help="seeds")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=20, help="training steps of a phase in each round")
    parser.add_argument("--runs", type=int, default=3, help="rounds of short runs; 0: only steps")
    parser.add_argument("--epochs", type=int, default=2, help="epochs a task of a short run")


def measure(options) -> dict:
    """Prints the table; returns its figures.

    Raises:
      AssertionError: losses or accuracies of the two sides differ.
    """
    seeds = list(range(options.count))
    together, alone = TrainingState(configured(seeds)), [TrainingState(configured([seed])) for seed in seeds]
    found = {}
    print("| what | one after another | together | ratio |\n|---|---|---|---|")
    for index, phase in enumerate(together.phases):
        sides = [together, *alone]
        for side in sides:
            side.seconds(index, options.steps)
        np.testing.assert_allclose(together.loss(index), [float(side.loss(index)) for side in alone], rtol=1e-4)
        ways = {
            "together": lambda index=index: together.seconds(index, options.steps),
            "alone": lambda index=index: sum(side.seconds(index, options.steps) for side in alone),
        }
        times = timing.alternate(ways, options.rounds)
        found[phase.name] = _print_row(
            f"a step of the {phase.name}",
            {side: 1e3 * statistics.median(values) / options.steps for side, values in times.items()},
            "ms",
        )
    if options.runs:
        found["run"] = _print_row(
            f"a run of {options.epochs} epochs a task", whole_runs(seeds, options.epochs, options.runs), "s"
        )
    return {"seeds": seeds, "medians": found}


def _print_row(what, medians, unit):
    ratio = medians["alone"] / medians["together"]
    print(f"| {what} | {medians['alone']:.1f} {unit} | {medians['together']:.1f} {unit} | {ratio:.2f} |", flush=True)
    return {**medians, "unit": unit, "ratio": ratio}
