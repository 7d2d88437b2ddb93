"""Builds tables of runs: one row for each network, or one row for each run."""

import math
import statistics
from collections.abc import Iterable, Sequence

from cdl_jax import config as configs
from cdl_jax.report.groups import TABLE_METRICS, Group, Run, identity, labels, metric_of
from cdl_jax.report.text import MISSING, Measured, Rows

# Prefixes of the keys that a student and its baseline without a teacher share.
_STUDENT_KEYS = ("data.", "learner.", "student.", "augment.", "optim.", "train.epochs")


def table(groups: Sequence[Group], names: Sequence[str] | None = None) -> Rows:
    """Returns a table with one row for each network of each group.

    A metric has the mean and the standard deviation over seeds. The column "last, Δ vs. first run" is the difference of
    `last` to the first group with the same network and metric, paired by seeds: mean and standard error. The column
    "gap closed" is shown if any group has one, see `gap_closed`. Where a group has finished runs, its unfinished runs
    are only counted.

    Args:
      groups: as `read_groups` returns them.
      names: labels of the groups; default: `labels(groups)`.
    """
    rows, first = [["run", "network", "seeds", *TABLE_METRICS, "last, Δ vs. first run", "gap closed"]], {}
    for label, group in zip(names or labels(groups), groups, strict=True):
        gap = gap_closed(group, groups)
        for network in dict.fromkeys(name for run in group.runs.values() for name in run.metrics):
            runs = [run for run in group.runs.values() if network in run.metrics]
            is_finished = any(run.finished for run in runs)  # without a finished run: what there is so far
            cells = [
                format_mean_std(group.values(network, metric, finished=is_finished).values())
                for metric in TABLE_METRICS
            ]
            values = group.values(network, "last", finished=True)
            base = first.setdefault((network, metric_of([group])), values)
            differences = [values[seed] - base[seed] for seed in values if seed in base and base is not values]
            closed = format_percent(gap if network == "student" else None)
            rows.append([label, network, count_runs(runs), *cells, format_difference(differences), closed])
    return rows if any(row[-1] != MISSING for row in rows[1:]) else [row[:-1] for row in rows]


def headlines(groups: Sequence[Group], names: Sequence[str] | None = None) -> Rows:
    """Returns a table with one row for each group.

    The column "last" is the mean of `last` over the networks of the group's headline. Unlike `table`, `headlines`
    compares groups whose networks have different names. "Δ vs. first run" is the difference of `last` to the first
    group, if it has the same metric, paired by seeds: mean and standard error. Further columns are shown if any group
    has them: the best epoch's accuracy; `last` of the networks "ensemble" and "teacher"; the diversity of peers; `last`
    of the ST heads, the paired difference ST - CL, and `last` of both heads together; the megabytes exchanged.

    Args:
      groups: as `read_groups` returns them.
      names: labels of the groups; default: `labels(groups)`.
    """
    head = ["run", "network", "seeds", "last", "Δ vs. first run", "best epoch", "ensemble", "teacher", "diversity"]
    head += ["ST head", "ST - CL", "both heads", "MB"]
    first, first_metric = groups[0].values("headline", "last", finished=True), metric_of(groups[:1])
    rows = []
    for label, group in zip(names or labels(groups), groups, strict=True):
        values = group.values("headline", "last", finished=True)
        runs = [group.runs[seed] for seed in values]
        is_compared = group is not groups[0] and metric_of([group]) == first_metric
        differences = [values[seed] - first[seed] for seed in values if seed in first and is_compared]
        best = [value for value in (run.value("headline", "best") for run in runs) if value is not None]
        diversity = [run.extra_metrics["diversity"] for run in runs if "diversity" in run.extra_metrics]
        st_head = group.values("headline_st", "last", finished=True)
        megabytes = [run.extra_metrics["exchanged_mb"] for run in runs if "exchanged_mb" in run.extra_metrics]
        rows.append([
            label,
            _headline_name(group),
            Measured(str(len(values)), {"": len(values)}),
            format_mean_std(values.values()),
            format_difference(differences),
            format_mean_std(best),
            format_mean_std(group.values("ensemble", "last", finished=True).values()),
            format_mean_std(group.values("teacher", "last", finished=True).values()),
            format_mean_std(diversity, 3),
            format_mean_std(st_head.values()),
            format_difference([st_head[seed] - values[seed] for seed in st_head]),
            format_mean_std(group.values("headline_both", "last", finished=True).values()),
            Measured(f"{statistics.fmean(megabytes):.1f}", {"": statistics.fmean(megabytes)}) if megabytes else MISSING,
        ])  # fmt: skip
    columns = [i for i in range(len(head)) if i < 5 or any(row[i] != MISSING for row in rows)]
    return [[row[i] for i in columns] for row in (head, *rows)]


def gap_closed(group: Group, groups: Iterable[Group]) -> float | None:
    """Returns the share of a student's gap to its teacher that distillation closes.

    The gap is that between a student alone and its teacher. The share is (student - alone) / (teacher - alone), from
    the means of `last` over the finished seeds that all three have. `teacher` and `student` are the networks of the
    distilled runs. `alone` is the student of the group without a teacher (`distill.name` is "none") with the same data,
    learner, optimizer and number of epochs. If several groups qualify, the one whose config differs in the fewest other
    keys is used.

    Args:
      group: the distilled runs.
      groups: contain the group without a teacher.

    Returns:
      A share, 1 if the student reaches its teacher. None if there is no such group or common seed, or if the teacher
      is not better than the student alone.
    """
    if group.config.get("distill.name", "none") == "none":
        return None
    candidates = [
        other
        for other in groups
        if other.config.get("distill.name") == "none"
        and _student_settings(other) == _student_settings(group)
        and _task_of_branch(other) == _task_of_branch(group)
    ]
    if not candidates:
        return None
    nearest = min(candidates, key=lambda other: len(configs.differences(group.config, other.config)))
    baseline = nearest.values("student", "last", finished=True)
    student, teacher = (group.values(network, "last", finished=True) for network in ("student", "teacher"))
    seeds = [seed for seed in baseline if seed in student and seed in teacher]
    gap = sum(teacher[seed] - baseline[seed] for seed in seeds)
    return sum(student[seed] - baseline[seed] for seed in seeds) / gap if gap > 0 else None


def format_mean_std(values: Iterable[float], digits: int = 2) -> str:
    """Returns a cell with the mean and the sample standard deviation of some values.

    Args:
      values: numbers; a single one has no standard deviation.
      digits: number of decimals.

    >>> format_mean_std([1.0, 3.0]), format_mean_std([1.0], digits=1), format_mean_std([])
    ('2.00 ± 1.41', '1.0', '-')
    """
    values = list(values)
    if not values:
        return MISSING
    mean, std = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
    cell = f"{mean:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")
    return Measured(cell, {"mean": mean, "std": std, "n": len(values)})


def count_runs(runs: Sequence[Run]) -> Measured:
    """Returns a cell with the number of runs and how many of them are unfinished."""
    unfinished = sum(not run.finished for run in runs)
    return Measured(f"{len(runs)} ({unfinished} unfinished)" if unfinished else str(len(runs)), {"": len(runs)})


def format_percent(share: float | None) -> str:
    """Returns a cell with a share in percent.

    >>> format_percent(0.354), format_percent(None)
    ('35%', '-')
    """
    return MISSING if share is None else Measured(f"{share:.0%}", {"": share})


def standard_error(values: Sequence[float]) -> float | None:
    """Returns the standard error of a mean; None for a single value.

    >>> standard_error([1.0, 3.0])
    1.0
    """
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None


def format_difference(differences: Sequence[float]) -> str:
    """Returns a cell with the mean of paired differences and its standard error."""
    if not differences:
        return MISSING
    mean, error = statistics.fmean(differences), standard_error(differences)
    cell = f"{mean:+.2f}" + ("" if error is None else f" ± {error:.2f}")
    return Measured(cell, {"mean": mean, "standard_error": error, "n": len(differences)})


def _headline_name(group):
    """Returns the network of a headline, or the number of its networks."""
    networks = next((run.headline for run in group.runs.values()), ())
    return networks[0] if len(networks) == 1 else f"mean of {len(networks)}"


def _task_of_branch(group):
    """Returns the task after which a group's runs branched; None: without a parent."""
    return next((run.parent and run.parent[1] for run in group.runs.values()), None)


def _student_settings(group):
    """Returns the settings that a student and its baseline without a teacher share."""
    return {key: value for key, value in identity(group).items() if key.startswith(_STUDENT_KEYS)}
