"""Runs beside published results: which cell of a paper's table a run is one of, and whether it comes out the same.

A run belongs to a cell if its config is the cell's, in all that bears on the results (see `differences`). A metric is
reproduced if the mean of at least 3 finished runs with different seeds lies within max(tolerance, 2 standard errors of
that mean) of the published number; the tolerance is the table's own, 1 point in CDL's.
"""

import statistics
from dataclasses import dataclass

from cdl_jax import config as configs
from cdl_jax import plugins, published
from cdl_jax.errors import UserError
from cdl_jax.published import Cell, Metric, Table
from cdl_jax.report.groups import Group
from cdl_jax.report.tables import spread, standard_error
from cdl_jax.report.text import Measured

MIN_SEEDS = 3
_NO_EFFECT = (*configs.RESUMABLE_KEYS, "seed", "eval.", "resident_limit_mb", "data.class_order_seed")


@dataclass(frozen=True)
class Match:
    """A group of runs and the cell that it is nearest to, with `reference` settings or without.

    apart: `key: published -> run` of every setting that differs; empty where the runs are the cell's.
    """

    group: Group
    cell: Cell
    reference: bool
    apart: tuple[str, ...]


def choose(paper: str) -> list[tuple[Table, str]]:
    """The tables that `--paper` names, by a system ("cdl") or by a version ("v4"), which then stands beside its table.

    Raises:
      UserError: neither.
    """
    tables = [published.table(system) for system in published.systems()]
    if paper in published.systems():
        return [(table, "") for table in tables if table.system == paper]
    versions = {table.system: {cell.where.get("version") for cell in table.cells} - {None} for table in tables}
    chosen = [(table, paper) for table in tables if paper in versions[table.system]]
    if not chosen:
        raise UserError(f"paper {paper}: {plugins.did_you_mean(paper, [*versions, *set().union(*versions.values())])}")
    return chosen


def matches(groups: list[Group], table: Table) -> list[Match]:
    """All cells whose runs are here; a group that is no cell's own goes to the nearest of those that it could be."""
    if table.system not in plugins.list_plugins("published"):
        return []
    system = plugins.load_plugin("published", table.system)
    found = []
    for group in groups:
        near = []
        for cell in table.cells:
            if any(group.config.get(key) != cell.where[name] for name, key in system.NAMED.items()):
                continue
            for reference in (False, True):
                config = configs.flatten(system.build(**cell.where, reference=reference))
                apart = differences(config, group.config, system)
                if not any(line.split(":")[0] in system.IDENTITY for line in apart):
                    near.append(Match(group, cell, reference, tuple(apart)))
        fewest = min((len(match.apart) for match in near), default=0)
        found += [match for match in near if len(match.apart) == fewest]
    return found


def differences(cell: dict, run: dict, system) -> list[str]:
    """`key: published -> run` of what differs between two flat configs and bears on the results.

    Where data and weights lie does not; whether weights are pretrained ones of the user's does.
    """
    ignored, needed = (*_NO_EFFECT, *system.irrelevant(run)), getattr(system, "NEEDED", ())

    def kept(config):
        flat = {k: v for k, v in config.items() if k in needed or not k.startswith(ignored)}
        return {
            k: _kind_of_weights(v) if k.endswith(".weights") else v
            for k, v in flat.items()
            if not k.endswith((".remat", ".attention", ".weights_key"))
        }

    return configs.differences(kept(cell), kept(run))


def table(published_table: Table, found: list[Match], version: str = "", *, all_cells: bool = False) -> list[list[str]]:
    """Rows of a table, the head first: paper, ours and the verdict on each metric.

    Args:
      found: what `matches` gave.
      version: only cells of this version.
      all_cells: cells without a run too.
    """
    metrics = published_table.metrics
    missed = "not run" if published_table.system in plugins.list_plugins("published") else "no config"
    head = [[name, "ours", "reproduced?"] for name in metrics]
    rows = [["published result", "settings", "seeds", *(text for three in head for text in three), "note"]]
    for cells in _alike(published_table, version):
        own = {}  # the same runs may be of a cell with both kinds of settings, and of a cell in several versions
        for match in found:
            if any(match.cell is cell for cell in cells):
                own.setdefault(id(match.group), []).append(match)
        rows += [_told(several, metrics) for several in own.values()]
        matched = [match.cell for several in own.values() for match in several]
        if missing := [cell for cell in cells if all_cells and not any(cell is other for other in matched)]:
            values = [missing[-1].values[name] for name in metrics]
            shown = (text for v in values for text in (_number(v), "-", "-" if v is None else missed))
            rows.append([_label(missing), "-", Measured("0", {"": 0}), *shown, missing[-1].note])
    return rows


def legend(published_table: Table) -> str:
    """What the columns of `table` mean, in one paragraph."""
    within = ", ".join(f"{name} {metric.within:g}" for name, metric in published_table.metrics.items())
    return (
        f"{published_table.paper}. Published: {published_table.source} Ours: mean ± standard deviation over finished "
        f"runs. Reproduced: |ours - published|, which is shown with its sign, is at most max(tolerance, 2 standard "
        f"errors of ours) with at least {MIN_SEEDS} seeds; tolerance: {within}. Settings: those of the cell with "
        "reference=false or true; a run with others is shown beside the nearest cell and not judged. Weights are only "
        "told to be pretrained or not: give those of the paper."
    )


def verdict(paper: float, ours: list[float], within: float) -> str:
    """Returns a cell: whether the mean of `ours`, one value a seed, reproduces a published number."""
    if not ours:
        return "-"
    apart = statistics.fmean(ours) - paper
    if len(ours) < MIN_SEEDS:
        word = "too few seeds"
    else:
        word = "yes" if abs(apart) <= max(within, 2 * standard_error(ours)) else "no"
    return Measured(f"{word} ({apart:+.2f})", {"": word, "difference": apart})


def _alike(published_table, version):
    """Lists of cells that differ in the version alone, values included."""
    alike = {}
    for cell in published_table.cells:
        if not version or cell.where.get("version") == version:
            alike.setdefault((*_without_version(cell), *cell.values.values()), []).append(cell)
    return alike.values()


def _without_version(cell):
    return [value for key, value in cell.where.items() if key != "version"]


def _label(cells):
    versions = "/".join(dict.fromkeys(cell.where.get("version", "") for cell in cells))
    return " ".join(filter(None, [versions, *_without_version(cells[0])]))


def _told(several, metrics: dict[str, Metric]):
    """The row of some runs; `several` are their matches with cells that are alike."""
    match, apart = several[0], several[0].apart
    runs = match.group.runs.values()
    running = sum(not run.finished for run in runs)
    finished = len(runs) - running
    seeds = Measured(f"{finished} ({running} unfinished)" if running else str(finished), {"": finished})
    settings = " or ".join(sorted({f"reference={str(m.reference).lower()}" for m in several}))
    told = [_label([m.cell for m in several]), "other" if apart else settings, seeds]
    for name, metric in metrics.items():
        paper = match.cell.values[name]
        reported = match.group.values(metric.network, metric.name, finished=True).values()
        ours = [metric.plus + metric.times * value for value in reported]
        judged = "not judged" if apart else "-" if paper is None else verdict(paper, ours, metric.within)
        told += [_number(paper), spread(ours), judged]
    if not apart:
        return [*told, match.cell.note]
    more = f"; and {len(apart) - 6} more" if len(apart) > 6 else ""
    return [*told, f"other settings than {settings}: {'; '.join(apart[:6])}{more}"]


def _kind_of_weights(value):
    return value if value == "random" or str(value).startswith("package:") else "pretrained"


def _number(value):
    return "-" if value is None else Measured(f"{value:.2f}", {"": value})
