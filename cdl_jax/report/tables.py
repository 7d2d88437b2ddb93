"""Tables of runs: one row a network, or one row a run's headline; gaps closed."""

import math
import statistics

from cdl_jax import config as configs
from cdl_jax.report import text
from cdl_jax.report.groups import TABLE_METRICS, Group, Run, labels
from cdl_jax.report.text import Measured

_SAME_STUDENT = ("data.", "learner.", "student.", "augment.", "optim.", "train.epochs")


def table(groups: list[Group], names: list[str] | None = None) -> list[list[str]]:
    """Rows of a table, the head first: one for each network of each group, with mean and standard deviation.

    names: of the groups; `labels` by default.

    "last, Δ vs. first run" is the paired difference of `last` to the first group with the same seeds and
    network: mean and standard error over the seeds that both have. "gap closed", where any group has one: see
    `gap_closed`.
    """
    rows, first = [["run", "network", "seeds", *TABLE_METRICS, "last, Δ vs. first run", "gap closed"]], {}
    for label, group in zip(names or labels(groups), groups, strict=True):
        gap = gap_closed(group, groups)
        for network in dict.fromkeys(name for run in group.runs.values() for name in run.metrics):
            runs = [run for run in group.runs.values() if network in run.metrics]
            cells = [spread(group.values(network, metric).values()) for metric in TABLE_METRICS]
            values = group.values(network, "last")
            base = first.setdefault(network, values)
            pairs = [values[seed] - base[seed] for seed in values if seed in base and base is not values]
            closed = share(gap if network == "student" else None)
            rows.append([label, network, count(runs), *cells, _difference(pairs), closed])
    return rows if any(row[-1] != "-" for row in rows[1:]) else [row[:-1] for row in rows]


def headlines(groups: list[Group], names: list[str] | None = None) -> list[list[str]]:
    """Rows of a table, the head first: one a group, with the mean of `last` over the networks of its headline.

    names: of the groups; `labels` by default.

    Unlike in `table`, groups whose networks have other names are compared too: "Δ vs. first run" is the paired
    one of "last" to the first group, mean and standard error. Further columns where any group has them: the same at the
    best epoch, `last` of the networks "ensemble" and "teacher", the peers' diversity, `last` of the ST heads, of them
    and the CL heads together, the paired difference of the former to "last", and the million bytes exchanged.
    """
    others = ("ensemble", "teacher")
    head, rows = ["run", "network", "seeds", "last", "Δ vs. first run", "best epoch", *others, "diversity"], []
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
        return text.MISSING
    mean, std = statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
    shown = f"{mean:.{digits}f}" + ("" if std is None else f" ± {std:.{digits}f}")
    return Measured(shown, {"mean": mean, "std": std, "n": len(values)})


def count(runs: list[Run]) -> Measured:
    """Returns a cell with the number of runs, and how many of them are unfinished."""
    running = sum(not run.finished for run in runs)
    return Measured(f"{len(runs)} ({running} unfinished)" if running else str(len(runs)), {"": len(runs)})


def share(value: float | None) -> str:
    """Returns a cell with a share in percent."""
    return text.MISSING if value is None else Measured(f"{value:.0%}", {"": value})


def _difference(pairs):
    if not pairs:
        return "-"
    mean, error = statistics.fmean(pairs), standard_error(pairs)
    shown = f"{mean:+.2f}" + ("" if error is None else f" ± {error:.2f}")
    return Measured(shown, {"mean": mean, "standard_error": error, "n": len(pairs)})


def standard_error(values: list[float]) -> float | None:
    """Returns the standard error of a mean; None for a single value."""
    return statistics.stdev(values) / math.sqrt(len(values)) if len(values) > 1 else None
