"""How distillation works in a run, told afterwards from the checkpoints that it left after each task.

`analyze` gives the content of analysis.json:

  tasks: how many had been learnt.
  predictions: name -> network -> accuracy of the last checkpoint, in percent on each task and on the mean over tasks:
    `unchanged`, and the method's probes (see `methods.base.Probe`).
  sweeps: the same for each value of a number that a probe sweeps.
  distillation_forgetting: `<teacher>/<student>` -> rows; row i, column t is KL(teacher after task t || student after
    task i) in nats on task t's test images, softmax at temperature 1 over the classes seen at task t.
  alignment, places: how alike the networks' layers see test pictures, and where they put them; see `representations`.
  selection: network -> layer -> how often each prompt was chosen by the test images of each task, and the entropy of
    each row in bits.
"""

import json
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np

from cdl_jax import config as configs
from cdl_jax.errors import UserError
from cdl_jax.losses import kl_divergences
from cdl_jax.report import analysis_section, run_page
from cdl_jax.run import representations, results, workdir
from cdl_jax.runtime import event_files, files
from cdl_jax.runtime.checkpoint import Checkpoints
from cdl_jax.training import steps as trainer
from cdl_jax.training.program import Program


def analyze(program: Program, folder: Path) -> dict:
    """The content of analysis.json (see above), of the tasks that the run has learnt until now.

    Raises:
      UserError: no task has been learnt, there are several seeds, or a checkpoint is missing or damaged.
    """
    if program.config.seeds:
        raise UserError("--mode=analyze looks at a run of one seed: train the one of interest alone, with config.seed")
    with Checkpoints(folder, read_only=True) as checkpoints:
        finished = checkpoints.finished_tasks()
        if not finished:
            raise UserError(f"--workdir {folder} has learnt no task yet: let the same command train with --mode=train")
        absent = sorted(set(range(finished[-1])) - set(finished))
        if absent:
            raise UserError(f"{folder}/checkpoints/tasks lacks task {absent[0]}: restore it, or train anew elsewhere")
        chosen = results.from_json(checkpoints.task_record(finished[-1]))[0].selection
        program.place_data()
        target, frozen = program.abstract_variables()
        frozen = checkpoints.restore_frozen(frozen)
        forgetting = _forgetting(program, len(finished), lambda task: checkpoints.restore_task(task, target), frozen)
        live = checkpoints.restore_task(finished[-1], target)
    learnt = program.stream.tasks[: len(finished)]
    predictions, sweeps = _predictions(program, live, frozen, learnt)
    alignment, places = representations.look(program, live, frozen, learnt)
    return {
        "tasks": len(finished),
        "predictions": predictions,
        "sweeps": sweeps,
        "distillation_forgetting": forgetting,
        "alignment": alignment,
        "places": places,
        "selection": {
            network: {
                layer: {"counts": rows, "entropy_bits": [run_page.entropy(row) for row in rows]}
                for layer, rows in layers.items()
            }
            for network, layers in chosen.items()
        },
        "versions": workdir.versions(),
        "command": workdir.command(),
    }


def write(folder: Path, content: dict) -> None:
    """Writes analysis.json, its plots of features, and report.html anew with what is in it.

    Raises:
      UserError: the run's results are missing or damaged, or the directory cannot be written.
    """
    stored = results.read(folder)
    if stored is None:
        raise UserError(f"{folder}/results.json is missing or damaged: the same command with --mode=train mends it")
    try:
        files.write_atomically(folder / "analysis.json", json.dumps(content, indent=1) + "\n")
        for name, picture in analysis_section.plot_features(content).items():
            files.write_atomically(folder / f"features_{name}.svg", picture)
        lines = event_files.JsonLines(folder / "metrics.jsonl").read()
        page = folder / "report.html"
        run_page.write_report(page, stored, lines, configs.read(folder)["config"], analysis_section.html_parts(content))
    except OSError as error:
        raise UserError(f"--workdir {folder} cannot be written ({error.strerror}): free it, or copy the run") from None


def _forgetting(program, learnt, restore, frozen):
    """For each pair the rows of KL(teacher after task t || student after task i), t <= i < `learnt`.

    restore: task -> live variables after it.
    """
    method, columns = program.method, np.arange(program.info.num_classes)
    pairs = method.pairs
    told, rows = {pair: [] for pair in pairs}, {pair: [] for pair in pairs}
    for now in program.stream.tasks[: learnt if pairs else 0]:
        live, place = restore(now.index), trainer.position(now)
        seen = [program.logits(live, frozen, task, place) for task in program.stream.tasks[: now.index + 1]]
        for teacher, student in pairs:
            told[teacher, student].append(seen[-1][teacher])
            rows[teacher, student].append(
                [
                    _mean(kl_divergences(logits[student], then, columns < task.end, 1.0))
                    for task, logits, then in zip(program.stream.tasks, seen, told[teacher, student], strict=False)
                ]
            )
    return {"/".join(pair): matrix for pair, matrix in rows.items()}


def _predictions(program, live, frozen, tasks):
    """(accuracy unchanged and with each probe that sweeps nothing, accuracy with each value of those that do)."""
    method, place = program.method, trainer.position(tasks[-1])

    def of(probe):
        changed = SimpleNamespace(predict=lambda *at: (probe.predict(*at), {}), image_size=method.image_size)
        step = trainer.evaluation_step(changed, program.test_source, program.config.augment, program.info)
        return program.evaluate(live, frozen, tasks, place, jax.jit(step))[0][0]

    unchanged = program.evaluate(live, frozen, tasks, place)[0][0]
    probes = method.probes()
    found = {"unchanged": unchanged, **{name: of(probe) for name, probe in probes.items() if not probe.values}}
    predictions = {
        name: {network: _with_mean(rows[network]) for network in method.networks if network in rows}
        for name, rows in found.items()
    }
    sweeps = {}
    for name, probe in probes.items():
        if probe.values:
            rows = of(probe)
            each = [{"value": value, **_with_mean(rows[str(value)])} for value in probe.values]
            sweeps[name] = {"network": probe.network, "usual": probe.usual, "values": each}
    return predictions, sweeps


def _with_mean(row):
    return {"accuracy": row, "mean": _mean(row)}


def _mean(values):
    return float(np.asarray(values, np.float64).mean())
