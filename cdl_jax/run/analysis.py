"""Analyzes the effects of prompts and distillation in a run.

The analysis reads the checkpoints after the run's tasks. `analyze` returns the content of analysis.json:

  tasks: number of finished tasks.
  predictions: name -> network -> accuracy of the last checkpoint, in percent on each task and their mean: `unchanged`,
    and the method's probes (see `methods.base.Probe`).
  sweeps: the same for each value of a number that a probe sweeps.
  distillation_forgetting: `<teacher>/<student>` -> rows; row i, column t is KL(teacher after task t || student after
    task i) in nats on task t's test images, softmax at temperature 1 over the classes seen at task t.
  cka, tsne: similarity of the networks' layers, and their features in the plane; see `representations`.
  selection: network -> layer -> how often the test images of each task selected each prompt, and the entropy of each
    row in bits.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jax
import numpy as np

from cdl_jax import config as configs
from cdl_jax import schema
from cdl_jax.errors import UserError
from cdl_jax.losses import kl_divergences
from cdl_jax.methods.base import Method, Probe
from cdl_jax.report import analysis_section, run_page
from cdl_jax.run import representations, results, workdir
from cdl_jax.runtime import files, json_lines
from cdl_jax.runtime.checkpoint import Checkpoints
from cdl_jax.training import problems
from cdl_jax.training.compiled import CompiledSteps
from cdl_jax.training.evaluator import Evaluator
from cdl_jax.training.experiment import Experiment
from cdl_jax.training.state import position
from cdl_jax.training.steps import evaluation_step


def analyze(experiment: Experiment, folder: Path) -> dict:
    """Returns the content of analysis.json for the finished tasks of a run.

    The docstring of this module describes the content.

    Raises:
      UserError: no task is finished, there are several seeds, or a checkpoint is missing or damaged.
    """
    if experiment.config.seeds:
        raise UserError("--mode=analyze looks at a run of one seed: train the one of interest alone, with config.seed")
    with Checkpoints(folder, read_only=True) as checkpoints:
        finished = checkpoints.finished_tasks()
        if not finished:
            raise UserError(f"--workdir {folder} has no finished task: let the same command train with --mode=train")
        absent = sorted(set(range(finished[-1])) - set(finished))
        if absent:
            raise UserError(f"{folder}/checkpoints/tasks lacks task {absent[0]}: restore it, or train anew elsewhere")
        if (problem := problems.name_of(experiment.config.method)) != "classification":
            raise UserError(f"--mode=analyze looks at classifiers, and this is a run of {problem}")
        selection = results.from_json(checkpoints.task_record(finished[-1]))[0].selection
        evaluator = Evaluator(CompiledSteps(experiment))
        target, frozen = experiment.abstract_variables()
        frozen = checkpoints.restore_frozen(frozen)
        tasks = experiment.stream.tasks[: len(finished)]
        forgetting = _forgetting(evaluator, tasks, lambda task: checkpoints.restore_task(task, target), frozen)
        mutable = checkpoints.restore_task(finished[-1], target)
    predictions, sweeps = _predictions(evaluator, mutable, frozen, tasks)
    cka, tsne = representations.compare_representations(evaluator, mutable, frozen, tasks)
    return {
        "schema": schema.SCHEMA,
        "tasks": len(finished),
        "predictions": predictions,
        "sweeps": sweeps,
        "distillation_forgetting": forgetting,
        "cka": cka,
        "tsne": tsne,
        "selection": {
            network: {
                layer: {"counts": rows, "entropy_bits": [run_page.entropy(row) for row in rows]}
                for layer, rows in layers.items()
            }
            for network, layers in selection.items()
        },
        "versions": workdir.versions(),
        "command": workdir.command(),
    }


def write(folder: Path, content: dict) -> None:
    """Writes analysis.json, its plots of features, and report.html with the analysis.

    Raises:
      UserError: the run's results are missing or damaged, or the directory cannot be written.
    """
    stored = results.read(folder)
    if stored is None:
        raise UserError(f"{folder}/results.json is missing or damaged: the same command with --mode=train mends it")
    try:
        files.write_atomically(folder / "analysis.json", json.dumps(content, indent=1) + "\n")
        for name, plot in analysis_section.plot_features(content).items():
            files.write_atomically(folder / f"features_{name}.svg", plot)
        lines = json_lines.JsonLines(folder / "metrics.jsonl").read()
        page = folder / "report.html"
        run_page.write_report(page, stored, lines, configs.read(folder), analysis_section.html_parts(content))
    except OSError as error:
        raise UserError(f"--workdir {folder} cannot be written ({error.strerror}): free it, or copy the run") from None


@dataclass(frozen=True)
class _ProbedMethod(Method):
    """Predicts with a probe."""

    probe: Probe
    image_size: int
    networks: tuple[str, ...] = ()
    phases: tuple = ()

    def init(self, key):
        return {}

    def predict(self, variables, images, context):
        return self.probe.predict(variables, images, context), {}


def _forgetting(evaluator, tasks, restore: Callable, frozen):
    """Returns the rows of `distillation_forgetting` of each pair.

    Row i has KL(teacher after task t || student after task i) for each t <= i.

    restore: task -> mutable variables after it.
    """
    pairs, columns = evaluator.steps.experiment.method.pairs, np.arange(evaluator.steps.experiment.info.num_classes)
    teacher_logits, rows = {pair: [] for pair in pairs}, {pair: [] for pair in pairs}
    for current in tasks if pairs else ():
        mutable, at, seen = restore(current.index), position(current), tasks[: current.index + 1]
        logits = [evaluator.logits(mutable, frozen, task, at) for task in seen]
        for pair in pairs:
            teacher, student = pair
            teacher_logits[pair].append(logits[-1][teacher])
            rows[pair].append(
                [
                    _mean(kl_divergences(of_task[student], target, columns < task.end, 1.0))
                    for task, of_task, target in zip(seen, logits, teacher_logits[pair], strict=True)
                ]
            )
    return {"/".join(pair): matrix for pair, matrix in rows.items()}


def _predictions(evaluator, mutable, frozen, tasks):
    """Returns `predictions` and `sweeps` of analysis.json.

    `predictions` has the accuracy unchanged and with each probe. `sweeps` has the accuracy with each value of each
    sweep.
    """
    steps, at = evaluator.steps, position(tasks[-1])
    method, config = steps.experiment.method, steps.experiment.config

    def accuracy(probe):
        probed = _ProbedMethod(probe, method.image_size)
        step = evaluation_step(probed, steps.test_loader, config.augment, steps.experiment.info)
        return evaluator.evaluate(mutable, frozen, tasks, at, jax.jit(step))[0].accuracy

    unchanged = evaluator.evaluate(mutable, frozen, tasks, at)[0].accuracy
    probes = method.probes()
    rows = {"unchanged": unchanged, **{name: accuracy(probe) for name, probe in probes.items() if not probe.values}}
    predictions = {
        name: {network: _with_mean(row[network]) for network in method.networks if network in row}
        for name, row in rows.items()
    }
    sweeps = {}
    for name, probe in probes.items():
        if probe.values:
            row = accuracy(probe)
            values = [{"value": value, **_with_mean(row[str(value)])} for value in probe.values]
            sweeps[name] = {"network": probe.network, "usual": probe.usual, "values": values}
    return predictions, sweeps


def _with_mean(row):
    return {"accuracy": row, "mean": _mean(row)}


def _mean(values):
    return float(np.asarray(values, np.float64).mean())
