"""Holds the record of a run, and makes results.json from the record.

Every checkpoint saves the record.
"""

import copy
import json
import resource
import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

import jax

from cdl_jax import schema
from cdl_jax.config import flatten
from cdl_jax.data import loaders
from cdl_jax.data.stream import Stream
from cdl_jax.evaluation import metrics
from cdl_jax.methods.base import Method, split
from cdl_jax.run import workdir
from cdl_jax.training.experiment import Experiment


@dataclass
class Record:
    """Holds the progress and the measurements of one seed; JSON only.

    Attributes:
      step: number of trained steps of the run.
      num_log_lines: number of lines of metrics.jsonl.
      task: index of the next task.
      round: next round of the task.
      phase: index of the next phase.
      epoch: next epoch, counted within the round.
      step_in_epoch: next step of the epoch.
      stopping_history: the method's headline in the evaluations of the current phase, for early stopping; negative
        where smaller numbers are better.
      accuracy: network -> rows; row i holds the percent on tasks 0..i after learning task i.
      pretask_accuracy: network -> percent on task j over the classes up to it, just before task j is learned.
      initial_accuracy: the same before the first task.
      extra_metrics: for each finished task, name -> mean over the test images of the tasks seen.
      best: task -> the best evaluation within it: phase, number of epochs, the headline, accuracy of each network on
        tasks 0..i, extra metrics. The last of equal ones.
      selection: network -> layer -> one row a task: how often its test images selected each prompt, or the sum of the
        prompt's absolute weights, at the last evaluation.
      calibration: name -> network or pair -> the values of `calibration.finalize` after each finished task.
      task_incremental: network -> rows like those of `accuracy`, where the task of each image is given.
      class_accuracy: network -> rows; row i holds the percent of each class of tasks 0..i after learning task i.
      confusion: network -> the rows of `evaluation.confusion` at the last evaluation.
      class_ap: network -> rows; row i holds the AP of each class of tasks 0..i after learning task i, in percent.
      detections: network -> the other values of `detection.detection_details` at the last evaluation.
      nonfinite: for each interval of log lines with NaN or infinity, the number of such steps, and the position, the
        images and the metrics of the first.
      seconds: phase or "evaluation" -> wall time.
      throughput: phase -> images and seconds after the first call, which compiles.
      flops: phase -> floating-point operations of a step for one seed, by the compiler's count.
      steps: phase -> number of steps so far.
      costs: finished task -> the values of `measured_cost` at its end; checkpoints of earlier versions have none.
      parent: the run from which this run branched, see `run.branching.Parent`; None: it began by itself.
    """

    step: int = 0
    num_log_lines: int = 0
    task: int = 0
    round: int = 0
    phase: int = 0
    epoch: int = 0
    step_in_epoch: int = 0
    stopping_history: list = field(default_factory=list)
    accuracy: dict = field(default_factory=dict)
    pretask_accuracy: dict = field(default_factory=dict)
    initial_accuracy: dict = field(default_factory=dict)
    extra_metrics: list = field(default_factory=list)
    best: dict = field(default_factory=dict)
    selection: dict = field(default_factory=dict)
    calibration: dict = field(default_factory=dict)
    task_incremental: dict = field(default_factory=dict)
    class_accuracy: dict = field(default_factory=dict)
    confusion: dict = field(default_factory=dict)
    class_ap: dict = field(default_factory=dict)
    detections: dict = field(default_factory=dict)
    nonfinite: list = field(default_factory=list)
    seconds: dict = field(default_factory=dict)
    throughput: dict = field(default_factory=dict)
    flops: dict = field(default_factory=dict)
    steps: dict = field(default_factory=dict)
    costs: dict = field(default_factory=dict)
    parent: dict | None = None

    def within_task(self) -> bool:
        """Returns whether the next step belongs to a task that has begun."""
        return any((self.round, self.phase, self.epoch, self.step_in_epoch))

    def add_seconds(self, what: str, seconds: float) -> None:
        """Adds wall time to a phase or to "evaluation"."""
        self.seconds[what] = self.seconds.get(what, 0.0) + seconds


# The fields that differ between the seeds of a run.
_OWN = (
    "accuracy", "pretask_accuracy", "initial_accuracy", "extra_metrics", "best", "selection", "calibration",
    "task_incremental", "class_accuracy", "confusion", "class_ap", "detections", "nonfinite",
)  # fmt: skip


def to_json(records: list[Record]) -> dict:
    """Returns the records of a run's seeds as checkpoints save them."""
    common, *_ = saved = [asdict(record) for record in records]
    own = [{name: values[name] for name in _OWN} for values in saved]
    shared = {name: value for name, value in common.items() if name not in _OWN}
    return {"schema": schema.SCHEMA, **shared, "seeds": own}


def from_json(saved: dict) -> list[Record]:
    """Returns the records of a run's seeds from the output of `to_json`.

    The output may be that of an earlier version.

    Raises:
      UserError: a later version of this program saved them.
    """
    saved = schema.upgrade("record", saved, "the record of a checkpoint")
    common = {name: value for name, value in saved.items() if name not in ("schema", "seeds")}
    return [Record(**copy.deepcopy(common), **own) for own in saved["seeds"]]


def read(folder: Path) -> dict | None:
    """Returns the content of a run's results.json.

    None: the file is missing, or it is damaged and must be made again.

    Raises:
      UserError: a later version of this program wrote it.
    """
    try:
        content = json.loads((folder / "results.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    return schema.upgrade("results", content, folder / "results.json") if isinstance(content, dict) else None


def collect(experiment: Experiment, record: Record, seed: int) -> dict:
    """Returns the content of results.json from the record and the experiment."""
    stream, config = experiment.streams[experiment.seeds.index(seed)], experiment.config
    networks, metric, is_distance = {}, experiment.metric, experiment.problem.lower_is_better
    for network in filter(record.accuracy.get, experiment.method.networks):
        rows = record.accuracy[network]
        pretask, initial = record.pretask_accuracy.get(network), record.initial_accuracy.get(network)
        ece, ece_seen, stream_rows = (
            record.calibration.get(name, {}).get(network) for name in ("ece", "ece_seen", "stream")
        )
        counts = test_counts(experiment, network) if metric == "accuracy" else None
        task_incremental, class_accuracy = (
            _complete(part.get(network), len(rows)) for part in (record.task_incremental, record.class_accuracy)
        )
        networks[network] = {
            "accuracy_matrix": rows,
            "pretask_accuracy": pretask,
            "initial_accuracy": initial,
            "ece_matrix": ece,
            "ece_seen": ece_seen,
            "stream_matrix": stream_rows,
            "task_incremental_matrix": task_incremental,
            "class_accuracy": class_accuracy,
            "confusion": record.confusion.get(network),
            "class_ap": record.class_ap.get(network),
            "metrics": metrics.named_metrics(rows, counts, pretask, initial, lower_is_better=is_distance)
            | (
                _metrics_of_images(stream_rows, counts, ece, ece_seen, task_incremental) if metric == "accuracy" else {}
            ),
            "per_task": metrics.series(rows, stream_rows, counts, lower_is_better=is_distance),
            "selection": record.selection.get(network, {}),
        }
    return {
        "schema": schema.SCHEMA,
        "name": f"{stream.name}, {config.method}",
        "method": config.method,
        "setting": experiment.method.setting,
        "status": "finished" if record.task == stream.num_tasks else "running",
        "seed": seed,
        "parent": record.parent,
        "stream": {
            "name": stream.name,
            "num_tasks": stream.num_tasks,
            "device_size": _device_size(stream, config),
            "tasks": tasks_of(stream),
        },
        "streams": [list(order) for order in experiment.method.streams],
        "metric": metric,
        "lower_is_better": is_distance,
        "networks": networks,
        "mean_over_learners": _means(experiment.method, networks),
        "headline": headline(experiment.method),
        "extra_metrics": record.extra_metrics,
        "best": record.best,
        "skipped_steps": sum(entry["count"] for entry in record.nonfinite),
        "pairs": _pairs(record),
        "formulas": metrics.FORMULAS | metrics.SERIES,
        "cost": {
            "parameters": parameters(experiment),
            "flops_per_step": record.flops,
            "steps": record.steps if sum(record.steps.values()) == record.step else None,
            **measured_cost(record),
            "device": _device(experiment),
        },
        "versions": workdir.versions(),
        "command": workdir.command(),
    }


def measured_cost(record: Record) -> dict:
    """Returns images a second of each phase, seconds so far, and peak memory.

    The memory is in bytes.
    """
    return {
        "images_per_second": {
            phase: images / seconds for phase, (images, seconds) in record.throughput.items() if images
        },
        "seconds": dict(record.seconds),
        "peak_memory_bytes": peak_memory(),
    }


def task_scalars(experiment: Experiment, record: Record, costs: dict[str, dict], task: int) -> dict[str, float]:
    """Returns what loggers show after a task besides its line of metrics.jsonl.

    Args:
      experiment: of the run.
      record: it may have later tasks, which have no effect.
      costs: of the finished tasks, see `Record`.
      task: index of a task whose evaluation is recorded.

    Returns:
      `<network>/<metric>/task_<j>`: row of the accuracy matrix; `<network>/<name>`: the defined metrics of this matrix
      so far, forgetting among them; `cost/...`: `measured_cost`, flat.
    """
    values, metric, is_distance = {}, experiment.metric, experiment.problem.lower_is_better
    for network, rows in record.accuracy.items():
        counts = test_counts(experiment, network) if metric == "accuracy" else None
        named = metrics.named_metrics(rows[: task + 1], counts and counts[: task + 1], lower_is_better=is_distance)
        values |= {f"{network}/{metric}/task_{j}": value for j, value in enumerate(rows[task])}
        values |= {f"{network}/{name}": value for name, value in named.items() if value is not None}
    cost = flatten(costs.get(str(task), {}))
    return values | {f"cost/{name.replace('.', '/')}": value for name, value in cost.items()}


def tasks_of(stream: Stream) -> list[dict]:
    """Returns the classes of each task, its domain, and its numbers of images."""
    return [
        {
            "first": task.first,
            "domain": task.domain,
            "classes": list(stream.class_names[task.first : task.end]),
            "class_ids": [int(number) for number in task.classes],
            "train": len(task.train),
            "test": len(task.test),
        }
        for task in stream.tasks
    ]


def test_counts(experiment: Experiment, network: str) -> list[int]:
    """Returns the number of test images of each task.

    The tasks are those of the stream that evaluates the network.
    """
    index = experiment.method.stream_of.get(network)
    own = [task.test for task in experiment.stream.tasks] if index is None else experiment.plan.test[index]
    return [len(rows) for rows in own]


def _metrics_of_images(stream_rows, counts, ece, ece_seen, task_incremental):
    by_name = metrics.stream_metrics(stream_rows, counts) | metrics.calibration_metrics(ece, ece_seen)
    return by_name | metrics.task_incremental_metrics(task_incremental)


def _complete(rows, num_tasks) -> list | None:
    """Returns rows of all finished tasks, or None.

    None: an earlier version, which measured no rows, trained some of the tasks.
    """
    return rows if rows and len(rows) == num_tasks else None


def _device_size(stream, config) -> list[int] | None:
    """Returns (height, width) of test images that are transformed on the device.

    None: evaluation transforms test images on the host.
    """
    on_device = stream.problem == "classification" and loaders.fits_device(stream.test, config.device_data_limit_mb)
    return [int(side) for side in stream.test.images.shape[1:3]] if on_device else None


def headline(method: Method) -> list[str]:
    """Returns the networks whose mean accuracy is the headline of a run."""
    return list(method.headline or method.networks[-1:])


def _means(method, networks):
    """Returns the metrics of each of the method's mean groups."""
    members = {name: [networks.get(member) for member in group] for name, group in method.mean_groups.items()}
    return {
        name: {"metrics": metrics.means([network["metrics"] for network in group])}
        for name, group in members.items()
        if len(group) > 1 and all(group)
    }


def _pairs(record):
    """Returns agreement and divergence of each `teacher/student` pair."""
    agreement, kl = (record.calibration.get(name, {}) for name in ("agreement", "kl"))
    return {
        pair: {
            "agreement_matrix": rows,
            "kl_matrix": kl[pair],
            "metrics": metrics.pair_metrics(rows, kl[pair]),
        }
        for pair, rows in agreement.items()
    }


def _device(experiment):
    """Returns the number and the kind of the devices, as text.

    With several seeds, speed, seconds and memory are those of all seeds together.
    """
    device = f"{experiment.mesh.size} x {jax.devices()[0].device_kind}"
    return f"{device}, shared by {len(experiment.seeds)} seeds" if len(experiment.seeds) > 1 else device


def parameters(experiment: Experiment) -> dict:
    """Counts the parameters of one seed, without statistics and bookkeeping.

    Returns:
      `{network: {"trainable": n, "frozen": n}}`.
    """
    trees, seeds = parameter_shapes(experiment), len(experiment.seeds)
    trainable, frozen = ({name: count_parameters(tree) for name, tree in part.items()} for part in trees)
    names = sorted({*trainable, *frozen})
    counts = {n: {"trainable": trainable.get(n, 0) // seeds, "frozen": frozen.get(n, 0)} for n in names}
    return {name: both for name, both in counts.items() if any(both.values())}


def parameter_shapes(experiment: Experiment) -> tuple[dict, dict]:
    """Returns the shapes of the parameters of each network.

    Statistics and bookkeeping are left out. Several seeds have a first axis in what training may change.

    Returns:
      (network -> shapes of the parameters that training may change, network -> shapes of the frozen ones).
    """
    bookkeeping = experiment.method.bookkeeping

    def is_one(path):
        return (
            not {"batch_stats", "statistics", "spectral"} & {*path}
            and path[:2] != ("distill", "state")
            and path[0] not in bookkeeping
        )

    mutable, frozen = (split(tree, is_one)[0] for tree in experiment.abstract_variables())
    return mutable, frozen


def count_parameters(tree) -> int:
    """Returns the number of entries of all arrays or shapes of a tree."""
    return sum(leaf.size for leaf in jax.tree.leaves(tree))


def peak_memory() -> int:
    """Returns the peak memory of the first device in bytes.

    Where the device reports none, the number is the peak memory of this process.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    if "peak_bytes_in_use" in stats:
        return stats["peak_bytes_in_use"]
    unit = 1 if sys.platform == "darwin" else 1024  # of ru_maxrss: bytes on macOS, KiB elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
