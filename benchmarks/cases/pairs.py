"""Times one task of every learner with every scheme.

    python -m benchmarks.run pairs [--out FILE.json]

Images and backbones are those of the quick start. Each pair learns the first task completely: teacher phase, student
phase, evaluation. Compilation is not timed. A pair that cannot be combined shows the reason.
"""

import sys

import jax

from benchmarks import timing
from cdl_jax import plugins
from cdl_jax.data import stream
from cdl_jax.errors import UserError
from cdl_jax.training.compiled import CompiledSteps
from cdl_jax.training.evaluator import Evaluator
from cdl_jax.training.experiment import Experiment
from cdl_jax.training.state import position
from configs import quickstart


def one_task(learner: str, scheme: str) -> dict:
    """Returns the seconds that the parts of the first task take.

    The parts are the phases, by name, and `evaluation`. Compilation is not timed.

    Raises:
      UserError: the two cannot be combined.
    """
    config = quickstart.get_config(f"learner={learner},distill={scheme}")
    program = Experiment.build(config, stream.load(config.data, config.seed))
    steps = CompiledSteps(program)
    task = program.stream.tasks[0]
    live, frozen = program.initial_variables()
    place = position(task)
    live = jax.block_until_ready(steps.start_task(live, frozen, place))
    state, seconds = steps.task_state(live), {}
    for index, phase in enumerate(program.method.phases):
        step, count = steps.train_step(index), program.steps_per_epoch(task, phase)
        start = timing.now()
        for number, item in enumerate(steps.train_batches(task, phase, 0, 0)):
            epoch, at = divmod(number, count)
            place = position(task, epoch=epoch, step=at, steps=count)
            state = step(state, frozen, steps.train_loader.data, item, place, program.seed)
        jax.block_until_ready(state.mutable)
        seconds[phase.name] = timing.now() - start
    live = steps.end_task(state.mutable, frozen, place)
    evaluator = Evaluator(steps)
    evaluator.evaluate(live, frozen, [task], place)  # compiles
    start = timing.now()
    evaluator.evaluate(live, frozen, [task], place)
    seconds["evaluation"] = timing.now() - start
    return seconds


def arguments(parser) -> None:
    """Adds the case's options."""
    parser.add_argument("--learners", nargs="+", default=plugins.list_plugins("models.learners"))
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
