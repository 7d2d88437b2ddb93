"""Time of one task of every learner with every scheme, on the pictures and backbones of the quick start.

    python -m benchmarks.pairs [--out FILE.json]

For each pair the first task is learnt whole: teacher phase, student phase, evaluation. Compilation is left out. What
cannot be combined says why.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import jax

from cdl_jax import names, trainer
from cdl_jax.data import stream
from cdl_jax.errors import UserError
from cdl_jax.program import Program
from configs import quickstart


def measure(learner: str, scheme: str) -> dict:
    """Seconds that the parts of the first task take, without compilation: each phase by its name, and `evaluation`.

    Raises:
      UserError: the two cannot be combined.
    """
    config = quickstart.get_config(f"learner={learner},distill={scheme}")
    program = Program(config, stream.load(config.data))
    program.place_data()
    task = program.stream.tasks[0]
    live, frozen = program.initial_variables()
    place = trainer.position(task)
    live = jax.block_until_ready(program.start_task(live, frozen, place))
    state, seconds = program.task_state(live, frozen), {}
    for index, phase in enumerate(program.method.phases):
        step = program.train_step(index, state, frozen)
        start = time.perf_counter()
        items, steps, _ = program.train_batches(task, phase, 0, 0, 0)
        for number, item in enumerate(items):
            epoch, at = divmod(number, steps)
            place = trainer.position(task, epoch=epoch, step=at, steps=steps)
            state = step(state, frozen, program.train_source.data, item, place, program.seed)
        jax.block_until_ready(state.live)
        seconds[phase.name] = time.perf_counter() - start
    live = program.end_task(state.live, frozen, place)
    program.evaluate(live, frozen, [task], place)  # compiles
    start = time.perf_counter()
    program.evaluate(live, frozen, [task], place)
    seconds["evaluation"] = time.perf_counter() - start
    return seconds


def main():
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="file for the figures as JSON")
    out, found = parser.parse_args().out, {}
    print("| learner | scheme | teacher, s | student, s | evaluation, s |\n|---|---|---|---|---|")
    for learner in names.available("models.prompts"):
        for scheme in names.available("distill"):
            try:
                seconds = measure(learner, scheme)
            except UserError as error:
                print(f"{learner} with {scheme}: {error}", file=sys.stderr)
                continue
            found[f"{learner}/{scheme}"] = seconds
            parts = [seconds.get(name) for name in ("teacher", "student", "evaluation")]
            if "both" in seconds:  # teacher and student on each batch
                parts[:2] = ["with the student's", seconds["both"]]
            cells = ["-" if part is None else part if isinstance(part, str) else f"{part:.2f}" for part in parts]
            print(f"| {learner} | {scheme} | {' | '.join(cells)} |", flush=True)
    if out:
        out.write_text(json.dumps({"device": jax.devices()[0].device_kind, "seconds": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
