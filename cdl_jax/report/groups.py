"""Reads finished and running runs, and labels groups of runs.

The runs of a group differ only in their seeds.
"""

import json
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType
from typing import Any

from cdl_jax import config as configs
from cdl_jax import schema
from cdl_jax.errors import UserError
from cdl_jax.methods.shared import added_options
from cdl_jax.runtime import files

TABLE_METRICS = ("last", "average_incremental", "forgetting_cdl", "forgetting_max")
Seeds = tuple[int, int, int]  # of the run, of its class order, of DKT's streams

# Keys that name another run or a file with a teacher's weights. Their values differ between seeds.
_TEACHER_RUNS = ("cdl.teacher_runs", "dkt.teacher_runs")
TEACHER_KEYS = (*_TEACHER_RUNS, "teacher.weights")


@dataclass(frozen=True)
class Run:
    """The results of one seed of a run.

    Attributes:
      folder: the working directory.
      finished: whether the run has completed all of its tasks.
      metrics: network -> metric -> value in percent, nats or as the metric defines; None where it is undefined. Extra
        metrics of a network, such as `AP50`, are those after the last task. If the run evaluated within its last task,
        `best` is the mean accuracy over tasks at the best epoch, and `best_<metric>` are that epoch's other metrics.
      headline: networks whose mean is the run's main number.
      extra_metrics: name -> value after the last task, see `Method.extra_metrics`.
      metric: name of the numbers of the accuracy matrix: "accuracy" or "AP".
      curve: after each task the mean over the tasks learned so far and over the headline; empty where the results have
        no matrices.
      parent: folder and task from which the run branched; None: it began by itself.
      setting: name of the method's setting, which is a part of every label; "" for most methods.
      operations: floating-point operations of all training steps; None: an earlier version did not count its steps, or
        the compiler states none.
      parameters: network -> number of parameters that training may change.
      num_tasks: of the stream; 0: the results do not state it.
      lower_is_better: whether the numbers of the accuracy matrix are distances.
    """

    folder: Path
    finished: bool
    metrics: dict[str, dict[str, float | None]]
    headline: tuple[str, ...] = ()
    extra_metrics: dict[str, float | None] = field(default_factory=dict)
    metric: str = "accuracy"
    curve: tuple[float, ...] = ()
    parent: tuple[str, int] | None = None
    setting: str = ""
    operations: float | None = None
    parameters: dict[str, int] = field(default_factory=dict)
    num_tasks: int = 0
    lower_is_better: bool = False

    def value(self, network: str, metric: str) -> float | None:
        """Returns a metric of a network, or its mean over the headline.

        Args:
          network: name of a network; "headline": the mean over the run's headline; "headline_st", "headline_both": the
            mean over the networks with "_st" or "_both" appended to the names of the headline.
          metric: name of a metric.

        Returns:
          The value; None if it is undefined for any of the networks.

        >>> run = Run(Path("a"), True, {"peer_0": {"last": 60.0}, "peer_1": {"last": 70.0}}, ("peer_0", "peer_1"))
        >>> run.value("peer_0", "last"), run.value("headline", "last"), run.value("ensemble", "last")
        (60.0, 65.0, None)
        """
        names = (network,)
        if network.startswith("headline"):
            names = tuple(name + network.removeprefix("headline") for name in self.headline)
        values = [self.metrics.get(name, {}).get(metric) for name in names]
        return None if None in values or not values else statistics.fmean(values)


@dataclass(frozen=True)
class Group:
    """Runs that differ only in their seeds.

    Attributes:
      config: the flat config that the runs share, without seeds and keys that change no result.
      runs: seeds -> run.
    """

    config: dict[str, Any]
    runs: dict[Seeds, Run]

    def values(self, network: str, metric: str, *, finished: bool = False) -> dict[Seeds, float]:
        """Returns `Run.value` by seed, for the runs in which it is defined.

        Args:
          network, metric: see `Run.value`.
          finished: leave out runs that are not finished.
        """
        runs = {seed: run for seed, run in self.runs.items() if run.finished or not finished}
        values = {seed: run.value(network, metric) for seed, run in runs.items()}
        return {seed: value for seed, value in values.items() if value is not None}


def read_groups(folders: Iterable[Path], refused: list[UserError] | None = None) -> list[Group]:
    """Reads runs and groups those that differ only in their seeds.

    Args:
      folders: working directories. A run of several seeds counts as one run for each seed.
      refused: receives an error for each folder without readable results, which is then left out. None: the first such
        error is raised.

    Returns:
      Groups in the order of their first folders.

    Raises:
      UserError: a folder has no readable results and `refused` is None, or two folders have the same config and seeds,
        so that one run would count twice.
    """
    groups: dict[str, Group] = {}
    errors = []
    for folder in map(Path, folders):
        try:
            seed_folders = _seed_folders(folder)
        except (UserError, OSError) as error:
            errors.append(UserError(error))
            continue
        for seed_folder in seed_folders:
            try:
                run, config, seeds = _read_run(seed_folder)
            except UserError as error:
                errors.append(error)
                continue
            group = groups.setdefault(json.dumps([config, run.parent], sort_keys=True), Group(config, {}))
            if seeds in group.runs:
                raise UserError(
                    f"{seed_folder} and {group.runs[seeds].folder} are runs of one config and seed: name one of them"
                )
            group.runs[seeds] = run
    if refused is None and errors:
        raise errors[0]
    if refused is not None:
        refused += errors
    return list(groups.values())


def identity(group: Group, ignored: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the settings by which a group is compared with other groups.

    The groups may differ in the other settings.

    The paths of teacher runs and files are replaced by whether there is a teacher, because runs with different class
    orders necessarily have different teachers.

    Args:
      group: its config has no seeds and no keys that change no result, see `read_groups`.
      ignored: keys to leave out.

    >>> group = Group({"distill.alpha": 0.5, "cdl.teacher_runs": ["runs/a"], "train.epochs": 2}, {})
    >>> identity(group, ["distill.alpha"])
    {'cdl.teacher_runs': True, 'train.epochs': 2}
    """
    settings = {key: value for key, value in group.config.items() if key not in ignored}
    return settings | {key: bool(settings[key]) for key in TEACHER_KEYS if key in settings}


def has_stored_teacher(group: Group) -> bool:
    """Returns whether a group's runs have the teachers of other runs.

    >>> has_stored_teacher(Group({"cdl.teacher_runs": ["runs/a"]}, {})), has_stored_teacher(Group({}, {}))
    (True, False)
    """
    return any(group.config.get(key) for key in _TEACHER_RUNS)


def metric_of(groups: Iterable[Group]) -> str:
    """Returns the name of the numbers that tables and plots of some groups show.

    >>> metric_of([Group({}, {(0, 0, 0): Run(Path("a"), True, {}, metric="AP")})])
    'AP'
    """
    return " or ".join(dict.fromkeys(run.metric for group in groups for run in group.runs.values()))


def check_one_metric(groups: Iterable[Group], command: str) -> None:
    """Checks that the runs of all groups have one metric.

    Only numbers of one metric can be compared.

    Args:
      groups: as `read_groups` returns them.
      command: words of the command, for the message.

    Raises:
      UserError: names the metrics.
    """
    metrics = sorted({run.metric for group in groups for run in group.runs.values()})
    if len(metrics) > 1:
        raise UserError(f"{command}: runs have different metrics ({', '.join(metrics)}): name those of one")


def labels(groups: Sequence[Group]) -> list[str]:
    """Returns a label for each group: the settings that differ, and its parent.

    See `label_settings`.
    """
    parents = [{"parent": parent} if (parent := parent_of(group)) else {} for group in groups]
    names = label_settings([group.config | parent for group, parent in zip(groups, parents, strict=True)])
    return [_with_setting(group, name) for group, name in zip(groups, names, strict=True)]


def _with_setting(group, name):
    """Returns a label with the name of the method's setting in front."""
    setting = next((run.setting for run in group.runs.values()), "")
    return f"{setting}, {name}" if setting else name


def parent_of(group: Group) -> str:
    """Returns the run and task from which a group's runs branched; "" without.

    >>> parent_of(Group({}, {(0, 0, 0): Run(Path("b"), True, {}, parent=("runs/a", 2))}))
    'runs/a after task 2'
    """
    parent = next((run.parent for run in group.runs.values()), None)
    return "{} after task {}".format(*parent) if parent else ""


def label_settings(flat_configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns `label_configs`, with teachers only where nothing else differs.

    So a setting whose run trained the teacher and one whose run took it from there differ in their settings alone.

    >>> label_settings([{"pool": 6, "cdl.teacher_runs": []}, {"pool": 8, "cdl.teacher_runs": ["runs/a"]}])
    ['pool=6', 'pool=8']
    """
    without_teachers = [{key: config[key] for key in config if key not in TEACHER_KEYS} for config in flat_configs]
    labels = label_configs(without_teachers)
    return labels if len({*labels}) == len(labels) else label_configs(flat_configs)


def label_configs(flat_configs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns a distinct label for each flat config.

    A label has the settings in which the configs differ, or is "all" if there are none. If a component's name differs
    (such as `learner.name`), the name stands for the component's options. Options are added where two configs with the
    same names would have one label.

    >>> label_configs([{"learner.name": "l2p", "learner.pool": 30}, {"learner.name": "coda", "learner.pool": 100}])
    ['learner.name=l2p', 'learner.name=coda']
    >>> label_configs([{"seed": 1}])
    ['all']
    """
    differing = _differing_keys(flat_configs)
    named_sections = {_section(key) for key in differing if key.endswith(".name")}
    if "method" in differing:  # sections that only some methods have
        sections = [{key.split(".")[0] for key in config if "." in key} for config in flat_configs]
        named_sections |= set.union(*sections) - set.intersection(*sections)
    shown = [key for key in differing if key.endswith(".name") or _section(key) not in named_sections]
    names = [", ".join(f"{key}={config[key]}" for key in shown if key in config) for config in flat_configs]
    for label in {label for label in names if names.count(label) > 1}:
        indices = [i for i, other in enumerate(names) if other == label]
        options = _differing_keys([flat_configs[i] for i in indices])
        for i in indices:
            settings = (f"{key}={flat_configs[i].get(key)}" for key in options)
            names[i] = ", ".join(filter(None, [label, *settings]))
    return [label or "all" for label in names]


def folder_names(groups: Sequence[Group]) -> list[str]:
    """Returns the name of each group's first folder.

    The name of the folder `<name>/seed_<n>` is `<name>`.

    Raises:
      UserError: two groups have the same name.
    """
    folders = [next(iter(group.runs.values())).folder.resolve() for group in groups]
    names = [(folder.parent if re.fullmatch(r"seed_\d+", folder.name) else folder).name for folder in folders]
    if repeated := [name for name in names if names.count(name) > 1]:
        raise UserError(
            f"--label-by-folder: two rows would be called {repeated[0]!r}: leave it out, or rename a folder"
        )
    parents = [parent_of(group) for group in groups]
    names = [f"{name} (from {parent})" if parent else name for name, parent in zip(names, parents, strict=True)]
    return [_with_setting(group, name) for group, name in zip(groups, names, strict=True)]


def _differing_keys(flat_configs):
    """Returns the sorted keys whose values differ between flat configs."""
    keys = sorted({key for config in flat_configs for key in config})
    return [key for key in keys if len({json.dumps(config.get(key)) for config in flat_configs}) > 1]


def _section(key):
    return key.rsplit(".", 1)[0]


def _read_run(folder):
    """Returns (run, flat config without seeds and resumable keys, seeds) of a folder.

    Raises:
      UserError: the folder has no readable results.
    """
    try:
        if not folder.is_dir():
            raise UserError(f"{folder} holds no results of a run (it is not a folder): name a --workdir")
        stored = configs.read(folder)
        path = folder / "results.json"
        if not path.exists():
            raise UserError(
                f"{folder} holds no results of a run yet: it has just begun, or it failed before a task's end"
            )
        if stored is None:
            raise UserError(f"{folder} holds no results of a run (config.json is missing): name a --workdir")
        results = schema.upgrade("results", json.loads(path.read_text(encoding="utf-8")), path)
        config, seeds = _without_seeds(added_options.complete(configs.flatten(stored["config"])))
        run = _parse_results(folder, results, seeds[0])
    except (OSError, AttributeError, KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
        reason = f"no {error} in it" if isinstance(error, KeyError) else error
        raise UserError(f"{folder} holds no results of a run ({reason}): name a --workdir") from None
    return run, config, seeds


def _without_seeds(config):
    """Returns (flat config without seeds and resumable keys, seeds).

    The seed is also removed from the names of other runs' folders: `seed_3` becomes `seed_*`.

    Raises:
      KeyError, TypeError: the seed is missing or not an integer.
    """
    seed = config.pop("seed")
    seeds = (seed, *(config.pop(key, 0) for key in ("data.class_order_seed", "dkt.stream_seed")))
    seeds = tuple(seed if part == -1 else part for part in seeds)  # -1: the seed of the run
    if not all(type(part) is int for part in seeds):
        raise TypeError("a seed or a network's name has the wrong type")
    shared = {key: value for key, value in config.items() if not configs.is_resumable(key)}
    return {key: _mask_seed(value, seed) for key, value in shared.items()}, seeds


def _mask_seed(value, seed):
    """Returns a setting with `seed_<seed>` replaced by `seed_*`."""
    if isinstance(value, list):
        return [_mask_seed(element, seed) for element in value]
    return re.sub(rf"\bseed_{seed}\b", "seed_*", value) if isinstance(value, str) else value


def _parse_results(folder, results, seed):
    """Returns the `Run` of a results.json.

    Args:
      folder: of the run.
      results: content of the file.
      seed: of the run, which has no part in the name of its parent.

    Raises:
      AttributeError, IndexError, KeyError, TypeError, ValueError: a value is missing or has the wrong type.
    """
    metrics = {name: dict(network["metrics"]) for name, network in results["networks"].items()}
    if missing := [name for values in metrics.values() for name in TABLE_METRICS if name not in values]:
        raise KeyError(missing[0])
    best_epoch = _best_epoch_metrics(results)
    for name, values in metrics.items():
        values |= best_epoch.get(name, {})
    extra_metrics = dict((results.get("extra_metrics") or [{}])[-1])
    for name, value in extra_metrics.items():
        network, _, metric = name.rpartition("/")
        if network in metrics:
            metrics[network].setdefault(metric, value)
    values = [value for scalars in (extra_metrics, *metrics.values()) for value in scalars.values()]
    if not all(type(value) in (int, float, NoneType) for value in values):
        raise TypeError("a metric is not a number")
    headline = tuple(results.get("headline", ()))
    metric = results.get("metric", "accuracy")
    if not all(isinstance(name, str) for name in (*headline, metric, results.get("setting", ""))):
        raise TypeError("a seed or a network's name has the wrong type")
    parent = results.get("parent")
    parent = (_mask_seed(parent["path"], seed), parent["task"]) if parent else None
    finished = results["status"] == "finished"
    cost = results.get("cost", {})
    parameters = {name: counts["trainable"] for name, counts in cost.get("parameters", {}).items()}
    num_tasks = results.get("stream", {}).get("num_tasks", 0)
    curve = _curve(results, headline)
    is_distance = bool(results.get("lower_is_better", False))
    measured = (results.get("setting", ""), _training_operations(cost), parameters, num_tasks, is_distance)
    return Run(folder, finished, metrics, headline, extra_metrics, metric, curve, parent, *measured)


def _training_operations(cost):
    """Returns the operations of all training steps; None if a number is missing."""
    steps, flops = cost.get("steps"), cost.get("flops_per_step", {})
    if not steps or any(flops.get(phase) is None for phase in steps):
        return None
    return sum(count * flops[phase] for phase, count in steps.items())


def _curve(results, headline):
    matrices = [results["networks"].get(name, {}).get("accuracy_matrix") for name in headline]
    if not all(matrices):
        return ()
    return tuple(statistics.fmean(map(statistics.fmean, rows)) for rows in zip(*matrices, strict=False))


def _best_epoch_metrics(results):
    """Returns network -> metrics at the best epoch of the last task.

    The result is empty if the run did not evaluate within the last task.
    """
    if not results.get("best"):
        return {}
    best = results["best"][max(results["best"], key=int)]
    metrics = {network: {"best": statistics.fmean(row)} for network, row in best["accuracy"].items()}
    for name, value in best["extra_metrics"].items():
        network, _, measure = name.rpartition("/")
        if network in metrics:
            metrics[network][f"best_{measure}"] = value
    return metrics


def _seed_folders(folder):
    """Returns the folder of each seed of a run."""
    stored = configs.read(folder)
    return files.seed_folders(folder, stored["config"].get("seeds", ()) if stored else ())
