"""Runs beside one another: those that differ in the seed alone make a group, and each group rows of a table."""

import json
import math
import re
import statistics
from dataclasses import dataclass, field
from pathlib import Path
from types import NoneType

from cdl_jax import config as configs
from cdl_jax.errors import UserError
from cdl_jax.report import tables
from cdl_jax.report.tables import Measured
from cdl_jax.runtime import files

SHOWN = ("last", "average_incremental", "forgetting_cdl", "forgetting_max")
_SAME_STUDENT = ("data.", "learner.", "student.", "augment.", "optim.", "train.epochs")


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


def read(folders: list[Path], refused: list[UserError] | None = None) -> list[Group]:
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
        if absent := [name for values in metrics.values() for name in SHOWN if name not in values]:
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


def table(groups: list[Group], names: list[str] | None = None) -> list[list[str]]:
    """Rows of a table, the head first: one for each network of each group, with mean and standard deviation.

    names: of the groups; `labels` by default.

    "last, difference to the first" is the paired difference of `last` to the first group with the same seeds and
    network: mean and standard error over the seeds that both have. "gap closed", where any group has one: see
    `gap_closed`.
    """
    rows, first = [["run", "network", "seeds", *SHOWN, "last, difference to the first", "gap closed"]], {}
    for label, group in zip(names or labels(groups), groups, strict=True):
        gap = gap_closed(group, groups)
        for network in dict.fromkeys(name for run in group.runs.values() for name in run.metrics):
            runs = [run for run in group.runs.values() if network in run.metrics]
            cells = [spread(group.values(network, metric).values()) for metric in SHOWN]
            values = group.values(network, "last")
            base = first.setdefault(network, values)
            pairs = [values[seed] - base[seed] for seed in values if seed in base and base is not values]
            closed = share(gap if network == "student" else None)
            rows.append([label, network, count(runs), *cells, _difference(pairs), closed])
    return rows if any(row[-1] != "-" for row in rows[1:]) else [row[:-1] for row in rows]


def headlines(groups: list[Group], names: list[str] | None = None) -> list[list[str]]:
    """Rows of a table, the head first: one a group, with the mean of `last` over the networks of its headline.

    names: of the groups; `labels` by default.

    Unlike in `table`, groups whose networks have other names are compared too: "difference to the first" is the paired
    one of "last" to the first group, mean and standard error. Further columns where any group has them: the same at the
    best epoch, `last` of the networks "ensemble" and "teacher", the peers' diversity, `last` of the ST heads, of them
    and the CL heads together, the paired difference of the former to "last", and the million bytes exchanged.
    """
    others = ("ensemble", "teacher")
    head, rows = ["run", "network", "seeds", "last", "difference to the first", "best epoch", *others, "diversity"], []
    head += ["ST head", "ST - CL", "both heads", "MB"]
    first = groups[0].values("headline", "last", finished=True)
    for label, group in zip(names or labels(groups), groups, strict=True):
        values = group.values("headline", "last", finished=True)
        pairs = [values[seed] - first[seed] for seed in values if seed in first and group is not groups[0]]
        best = [b for b in (group.runs[seed].value("headline", "best") for seed in values) if b is not None]
        apart = [group.runs[s].measures["diversity"] for s in values if "diversity" in group.runs[s].measures]
        own = next((run.headline for run in group.runs.values()), ())
        network = own[0] if len(own) == 1 else f"mean of {len(own)}"
        rows.append([label, network, Measured(str(len(values)), {"": len(values)})])
        rows[-1] += [spread(values.values()), _difference(pairs), spread(best)]
        rows[-1] += [*(spread(group.values(other, "last").values()) for other in others), spread(apart, 3)]
        taught = group.values("headline_st", "last", finished=True)
        rows[-1] += [spread(taught.values()), _difference([taught[seed] - values[seed] for seed in taught])]
        rows[-1].append(spread(group.values("headline_both", "last", finished=True).values()))
        sent = [
            group.runs[seed].measures["exchanged_mb"] for seed in values if "exchanged_mb" in group.runs[seed].measures
        ]
        rows[-1].append(Measured(f"{statistics.fmean(sent):.1f}", {"": statistics.fmean(sent)}) if sent else "-")
    kept = [i for i, name in enumerate(head) if i < 5 or any(row[i] != "-" for row in rows)]
    return [[row[i] for i in kept] for row in (head, *rows)]


def gap_closed(group: Group, groups: list[Group]) -> float | None:
    """(student - alone) / (teacher - alone), of the means of `last` over the seeds that both groups have.

    `alone` is the student of the group without a teacher (`distill.name` "none") that learns the same data with the
    same learner, optimizer and number of epochs; of several, the one whose config differs in the fewest other keys.
    `teacher` is the distilled run's own.
    None where there is no such group or seed, and where the teacher is not above the student alone.
    """
    if group.config.get("distill.name", "none") == "none":
        return None

    def part(other):
        return {key: value for key, value in other.config.items() if key.startswith(_SAME_STUDENT)}

    def apart(other):
        return len(configs.differences(group.config, other.config))

    alone = [o for o in groups if o.config.get("distill.name") == "none" and part(o) == part(group)]
    if not alone:
        return None
    base, student, teacher = (
        g.values(network, "last", finished=True)
        for g, network in ((min(alone, key=apart), "student"), (group, "student"), (group, "teacher"))
    )
    seeds = [seed for seed in base if seed in student and seed in teacher]
    whole = sum(teacher[seed] - base[seed] for seed in seeds)
    return sum(student[seed] - base[seed] for seed in seeds) / whole if whole > 0 else None


def spread(values, digits: int = 2) -> str:
    """Returns a cell with the mean and the standard deviation of some values, rounded to so many digits."""
    values = list(values)
    if not values:
        return tables.MISSING
    mean, std = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
    text = f"{mean:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")
    return Measured(text, {"mean": mean, "std": std, "n": len(values)})


def count(runs: list[Run]) -> Measured:
    """Returns a cell with the number of runs, and how many of them are unfinished."""
    running = sum(not run.finished for run in runs)
    return Measured(f"{len(runs)} ({running} unfinished)" if running else str(len(runs)), {"": len(runs)})


def share(value: float | None) -> str:
    """Returns a cell with a share in percent."""
    return tables.MISSING if value is None else Measured(f"{value:.0%}", {"": value})


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
        raise UserError(f"--names: two rows would be called {twice[0]!r}: leave it out, or rename a folder")
    return names


def _difference(pairs):
    if not pairs:
        return "-"
    mean, error = statistics.fmean(pairs), standard_error(pairs)
    text = f"{mean:+.2f}" + ("" if error is None else f" ± {error:.2f}")
    return Measured(text, {"mean": mean, "standard_error": error, "n": len(pairs)})


def standard_error(values: list[float]) -> float | None:
    """Returns the standard error of a mean; None for a single value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
