"""Runs beside one another: those that differ in the seed alone make a group, and each group rows of a table."""

import json
import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType

from cdl_jax import config as configs
from cdl_jax.errors import UserError
from cdl_jax.runtime import files

TABLE_METRICS = ("last", "average_incremental", "forgetting_cdl", "forgetting_max")


@dataclass(frozen=True)
class Run:
    """What a folder holds.

    metrics: network -> name -> value, None where the run defines none. Of the best epoch, where the run evaluated
      within its last task, `best` is the mean accuracy over the tasks, and `best_<name>` what is measured besides.
    headline: networks whose mean is the run's first number.
    measures: those after the last task.
    """

    folder: Path
    finished: bool
    metrics: dict
    headline: tuple[str, ...] = ()
    measures: dict = field(default_factory=dict)

    def value(self, network: str, metric: str) -> float | None:
        """A metric of a network; of "headline" the mean over the networks of the headline, of "headline_st" over those
        with that behind their names. None where it is not defined."""
        values = [self.metrics.get(name, {}).get(metric) for name in self._named(network)]
        return None if None in values or not values else statistics.fmean(values)

    def _named(self, network):
        if not network.startswith("headline"):
            return (network,)
        return tuple(name + network.removeprefix("headline") for name in self.headline)


@dataclass(frozen=True)
class Group:
    """Runs by seed (of the run and of class orders), and their flat `config` without it and without free keys."""

    config: dict
    runs: dict[tuple, Run]

    def values(self, network: str, metric: str, *, finished=False) -> dict[tuple, float]:
        """`Run.value` by seed, of the runs that have it; with `finished`, of those that are complete."""
        runs = {seed: run for seed, run in self.runs.items() if run.finished or not finished}
        found = {seed: run.value(network, metric) for seed, run in runs.items()}
        return {seed: value for seed, value in found.items() if value is not None}


def read_groups(folders: list[Path], refused: list[UserError] | None = None) -> list[Group]:
    """Returns the runs in `folders` as groups, in the order of their first folders.

    Args:
      folders: working directories; a run of several seeds counts as one run for each seed.
      refused: a list that receives an error for each folder without readable results; such a folder is then left out.

    Raises:
      UserError: a folder holds no readable results and `refused` is None, or two folders hold the same config and
        seed, which would count one run twice.
    """
    groups, refused_here = {}, []
    for given in map(Path, folders):
        try:
            own = _of_each_seed(given)
        except (UserError, OSError) as error:
            refused_here.append(UserError(error))
            continue
        for folder in own:
            try:
                run, config, seed = _run(folder)
            except UserError as error:
                refused_here.append(error)
                continue
            group = groups.setdefault(json.dumps(config, sort_keys=True), Group(config, {}))
            if seed in group.runs:
                raise UserError(
                    f"{folder} and {group.runs[seed].folder} are runs of one config and seed: name one of them"
                )
            group.runs[seed] = run
    if refused is None and refused_here:
        raise refused_here[0]
    if refused is not None:
        refused += refused_here
    return list(groups.values())


def _run(folder):
    """Returns (run, flat config without seeds and free keys, seeds) of a folder.

    Raises:
      UserError: the folder holds no readable results.
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
        results, config = json.loads(path.read_text(encoding="utf-8")), configs.flatten(stored["config"])
        seed = (config.pop("seed"), *(config.pop(key, 0) for key in ("data.class_order_seed", "dkt.stream_seed")))
        seed = tuple(seed[0] if part == -1 else part for part in seed)  # an order of its own seed
        metrics = {name: dict(network["metrics"]) for name, network in results["networks"].items()}
        if absent := [name for values in metrics.values() for name in TABLE_METRICS if name not in values]:
            raise KeyError(absent[0])
        best = _best(results)
        for name, values in metrics.items():
            values |= best.get(name, {})
        measures = dict((results.get("measures") or [{}])[-1])
        if not all(_is_number(value) for values in (measures, *metrics.values()) for value in values.values()):
            raise TypeError("a metric is not a number")
        headline = tuple(results.get("headline", ()))
        if not all(type(part) is int for part in seed) or not all(isinstance(name, str) for name in headline):
            raise TypeError("a seed or a network's name has the wrong type")
        run = Run(folder, results["status"] == "finished", metrics, headline, measures)
    except (OSError, AttributeError, KeyError, TypeError, ValueError, IndexError, RecursionError) as error:
        reason = f"no {error} in it" if isinstance(error, KeyError) else error
        raise UserError(f"{folder} holds no results of a run ({reason}): name a --workdir") from None
    config = {k: _of_any_seed(v, seed[0]) for k, v in config.items() if not k.startswith(configs.RESUMABLE_KEYS)}
    return run, config, seed


def _is_number(value):
    return type(value) in (int, float, NoneType)


def _of_any_seed(value, seed):
    """A setting, without the seed in the name of another run's folder."""
    if isinstance(value, list):
        return [_of_any_seed(each, seed) for each in value]
    return re.sub(rf"\bseed_{seed}\b", "seed_*", value) if isinstance(value, str) else value


def _best(results):
    """Network -> metrics of the best epoch of the last task, where the run evaluated within it."""
    if not results.get("best"):
        return {}
    best = results["best"][max(results["best"], key=int)]
    found = {network: {"best": statistics.fmean(row)} for network, row in best["accuracy"].items()}
    for name, value in best["measures"].items():
        network, _, measure = name.rpartition("/")
        if network in found:
            found[network][f"best_{measure}"] = value
    return found


def _of_each_seed(folder):
    stored = configs.read(folder)
    return files.seed_folders(folder, stored["config"].get("seeds", ()) if stored else ())


def labels(groups: list[Group]) -> list[str]:
    """For each group the values in which groups differ; no two are alike."""
    configs_of_groups = [group.config for group in groups]
    keys = sorted({key for config in configs_of_groups for key in config})
    told = [k for k in keys if len({json.dumps(c.get(k)) for c in configs_of_groups}) > 1]
    # Options of the part that a name chooses differ with it, and say nothing more.
    names = {k.rsplit(".", 1)[0] for k in told if k.endswith(".name")}
    if "method" in told:  # likewise the sections that only some methods have
        sections = [{k.split(".")[0] for k in config if "." in k} for config in configs_of_groups]
        names |= set.union(*sections) - set.intersection(*sections)
    short = [k for k in told if k.endswith(".name") or k.rsplit(".", 1)[0] not in names]
    found = [", ".join(f"{k}={c[k]}" for k in short if k in c) for c in configs_of_groups]
    for label in {label for label in found if found.count(label) > 1}:
        # Groups of one name: here its options are what parts them.
        alike = [i for i, other in enumerate(found) if other == label]
        for i in alike:
            own = configs_of_groups[i]
            apart = [k for k in told if len({json.dumps(configs_of_groups[j].get(k)) for j in alike}) > 1]
            found[i] = ", ".join(filter(None, [label, *(f"{k}={own.get(k)}" for k in apart)]))
    return [label or "all" for label in found]


def folder_names(groups: list[Group]) -> list[str]:
    """For each group the name of its first run's folder, of a `seed_<s>` that of the folder around it.

    Raises:
      UserError: two groups have one name.
    """
    folders = [next(iter(group.runs.values())).folder.resolve() for group in groups]
    names = [(folder.parent if re.fullmatch(r"seed_\d+", folder.name) else folder).name for folder in folders]
    if twice := [name for name in names if names.count(name) > 1]:
        raise UserError(f"--label-by-folder: two rows would be called {twice[0]!r}: leave it out, or rename a folder")
    return names
