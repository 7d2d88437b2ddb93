"""Cost of running statistics of batch normalization for a learner of DKT.

    python -m benchmarks.run running_statistics RUN [RUN ...] [--out FILE.json]
    python -m benchmarks.run running_statistics --read FILE.json

The weights of such a learner still move when a task ends. RUN is a finished run of convolutional learners. Its networks
are tested as they were after each task: with the running statistics that training left, and with those of all training
images of that task and of the memory, taken at once of the weights as they then were. Nothing else differs, so the
difference is what the running ones lag behind. --read shows what an earlier call found and tests nothing.
"""

import json
import statistics
from pathlib import Path

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from cdl_jax import config as configs
from cdl_jax.data import stream
from cdl_jax.data.transforms import augment
from cdl_jax.models.modules.batch_norm import MOMENTUM
from cdl_jax.runtime.checkpoint import Checkpoints
from cdl_jax.training.compiled import CompiledSteps
from cdl_jax.training.evaluator import Evaluator
from cdl_jax.training.experiment import Experiment
from cdl_jax.training.state import position


def accuracies(folder: Path) -> dict:
    """Returns the accuracies with running statistics and with those taken anew.

    Returns:
      {"running", "anew": [percent after each task]}, the mean over the learners' CL heads and the learned tasks.
    """
    config = ml_collections.ConfigDict(configs.copy_with_tuples(configs.read(folder)["config"]))
    program = Experiment.build(config, stream.load(config.data, config.seed))
    steps = CompiledSteps(program)
    evaluator = Evaluator(steps)
    live, frozen = program.abstract_variables()
    anew = jax.jit(lambda own, images: _anew(program.method, own, images))
    found = {"running": [], "anew": []}
    with Checkpoints(folder, read_only=True) as checkpoints:
        frozen = checkpoints.restore_frozen(frozen)
        for task in program.stream.tasks:
            restored = checkpoints.restore_task(task.index, live)
            changed = {
                name: anew(restored[name], _images(steps, number, task.index))
                for number, name in enumerate(program.method.names)
            }
            for kind, variables in (("running", restored), ("anew", {**restored, **changed})):
                tasks = program.stream.tasks[: task.index + 1]
                accuracy = evaluator.evaluate(variables, frozen, tasks, position(task))[0][0]
                found[kind].append(statistics.fmean(np.mean(accuracy[name]) for name in program.method.names))
    return found


def _anew(method, own, images):
    """Returns the variables of a learner with the statistics of these images.

    These replace the running statistics of the learner.
    """
    moved = method.learner(own, None, images, True, None, jax.random.key(0)).stats["batch_stats"]
    running = own["batch_stats"]
    return {
        **own,
        "batch_stats": jax.tree.map(lambda new, old: (new - MOMENTUM * old) / (1 - MOMENTUM), moved, running),
    }


def _images(steps, learner, task):
    """Those of a learner's task and, in the same number, of its memory."""
    program = steps.experiment
    rows = program.plan.train[learner][task]
    if task and (memory := program.method.phases[-1].replay):
        kept = program.plan.replay_rows(learner, task, memory, program.seed)
        rows = np.concatenate([rows, np.resize(kept, len(rows))])
    images, _ = steps.train_loader.read(steps.train_loader.data, {"rows": jnp.asarray(rows)})
    return augment.transform_test(images, program.config.augment, program.method.image_size)


def table(found: dict) -> str:
    """Formats the results of `accuracies` as a table.

    It has the accuracies after the last task, and the largest loss of accuracy after any task.
    """
    lines = ["| run | running statistics | taken anew | most lost after a task |", "|---|---|---|---|"]
    for name, matrices in found["runs"].items():
        lost = max(b - a for a, b in zip(matrices["running"], matrices["anew"], strict=True))
        lines.append(f"| {name} | {matrices['running'][-1]:.2f} | {matrices['anew'][-1]:.2f} | {lost:.2f} |")
    return "\n".join(lines)


def arguments(parser) -> None:
    """Adds the case's options."""
    parser.add_argument("folders", nargs="*", type=Path, metavar="RUN")
    parser.add_argument("--read", type=Path, help="figures of an earlier call to show again")


def measure(options) -> dict:
    """Prints the table; returns its figures."""
    if options.read:
        found = json.loads(options.read.read_text())
    else:
        found = {"runs": {"/".join(folder.parts[-2:]): accuracies(folder) for folder in options.folders}}
    print(table(found))
    return found
