"""Times one task of every learner with every scheme, on the images and backbones of the quick start.

    python -m benchmarks.run pairs [--out FILE.json]

Each pair learns the first task completely: teacher phase, student phase, evaluation. Compilation is not timed. A pair
that cannot be combined shows the reason.
"""

import sys

import jax

from benchmarks import timing
from cdl_jax import plugins
from cdl_jax.data import stream
from cdl_jax.errors import UserError
from cdl_jax.training import steps as trainer
from cdl_jax.training.program import Program
from configs import quickstart


def one_task(learner: str, scheme: str) -> dict:
    """Seconds that the parts of the first task take, without compilation: each phase by its name, and `evaluation`.

    Raises:
      UserError: the two cannot be combined.
    """
    config = quickstart.get_config(f"learner={learner},distill={scheme}")
    program = Program(config, stream.load(config.data, config.seed))
    program.place_data()
    task = program.stream.tasks[0]
    live, frozen = program.initial_variables()
    place = trainer.position(task)
    live = jax.block_until_ready(program.start_task(live, frozen, place))
    state, seconds = program.task_state(live, frozen), {}
    for index, phase in enumerate(program.method.phases):
        step = program.train_step(index, state, frozen)
        start = timing.now()
        items, steps, _ = program.train_batches(task, phase, 0, 0, 0)
        for number, item in enumerate(items):
            epoch, at = divmod(number, steps)
            place = trainer.position(task, epoch=epoch, step=at, steps=steps)
            state = step(state, frozen, program.train_source.data, item, place, program.seed)
        jax.block_until_ready(state.live)
        seconds[phase.name] = timing.now() - start
    live = program.end_task(state.live, frozen, place)
    program.evaluate(live, frozen, [task], place)  # compiles
    start = timing.now()
    program.evaluate(live, frozen, [task], place)
    seconds["evaluation"] = timing.now() - start
    return seconds


def arguments(parser) -> None:
    """Adds the case's options."""
    parser.add_argument("--learners", nargs="+", default=plugins.list_plugins("models.prompts"))
    parser.add_argument("--schemes", nargs="+", default=plugins.list_plugins("distill"))


def measure(options) -> dict:
    """Prints the table; returns its figures."""
    found = {}
    print("| learner | scheme | teacher, s | student, s | evaluation, s |\n|---|---|---|---|---|")
    for learner in options.learners:
        for scheme in options.schemes:
            try:
                seconds = one_task(learner, scheme)
            except UserError as error:
                print(f"{learner} with {scheme}: {error}", file=sys.stderr)
                continue
            found[f"{learner}/{scheme}"] = seconds
            parts = [seconds.get(name) for name in ("teacher", "student", "evaluation")]
            if "both" in seconds:  # teacher and student on each batch
                parts[:2] = ["with the student's", seconds["both"]]
            cells = ["-" if part is None else part if isinstance(part, str) else f"{part:.2f}" for part in parts]
            print(f"| {learner} | {scheme} | {' | '.join(cells)} |", flush=True)
    return {"seconds": found}
