"""Compares runs with published results.

A comparison has the cell of a paper's table that a run belongs to, and a verdict.

A run belongs to a cell if their configs are equal in all settings that affect results, see `differences`. A metric is
reproduced if the mean of at least 3 finished runs with different seeds is within max(tolerance, 2 standard errors of
that mean) of the published number. The tolerance is the table's own; it is 1 point for CDL.
"""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from cdl_jax import config as configs
from cdl_jax import plugins, published
from cdl_jax.errors import UserError
from cdl_jax.published import Cell, Metric, Table
from cdl_jax.report.groups import Group, parent_of
from cdl_jax.report.tables import format_mean_std, standard_error
from cdl_jax.report.text import MISSING, Measured, Rows

MIN_SEEDS = 3
_MAX_MISMATCHES = 6  # that a note lists
_NO_EFFECT = ("seed", "eval.", "device_data_limit_mb", "data.class_order_seed")
_NO_EFFECT_ENDINGS = (".remat", ".attention", ".weights_key")


@dataclass(frozen=True)
class Match:
    """A group of runs and the nearest cell.

    Attributes:
      group: the runs.
      cell: the published result.
      reference: whether the cell's settings are those with `reference=true`.
      mismatches: "key: published -> run" for every setting that differs; empty if the runs have the cell's settings.
    """

    group: Group
    cell: Cell
    reference: bool
    mismatches: tuple[str, ...]


def choose(paper: str) -> list[tuple[Table, str]]:
    """Returns the published tables that a name selects, each with the version to show.

    Args:
      paper: a system ("cdl"), which selects all versions (""), or one version of a paper ("v4").

    Raises:
      UserError: there is no such system or version.

    >>> [(table.system, version) for table, version in choose("v4")]
    [('cdl', 'v4')]
    """
    tables = [published.table(system) for system in published.systems()]
    if paper in published.systems():
        return [(table, "") for table in tables if table.system == paper]
    versions = {table.system: {cell.choices.get("version") for cell in table.cells} - {None} for table in tables}
    chosen = [(table, paper) for table in tables if paper in versions[table.system]]
    if not chosen:
        known = [*versions, *set().union(*versions.values())]
        raise UserError(f"paper {paper}: {plugins.did_you_mean(paper, known)}")
    return chosen


def matches(groups: Sequence[Group], published_table: Table) -> list[Match]:
    """Returns the cells that groups belong to.

    A group with other settings is matched with the nearest possible cells.

    Args:
      groups: as `read_groups` returns them.
      published_table: a system without a module of settings has no matches.
    """
    if published_table.system not in plugins.list_plugins("published"):
        return []
    system = plugins.load_plugin("published", published_table.system)
    nearest = []
    for group in groups:
        candidates = []
        for cell in published_table.cells:
            if any(group.config.get(key) != cell.choices[name] for name, key in system.CONFIG_KEYS.items()):
                continue
            for reference in (False, True):
                config = configs.flatten(system.build(**cell.choices, reference=reference))
                mismatches = tuple(differences(config, group.config, system))
                if parent := parent_of(group):  # its first tasks had the settings of its parent
                    mismatches += (f"parent: none -> {parent}",)
                if not any(line.split(":")[0] in system.IDENTITY for line in mismatches):
                    candidates.append(Match(group, cell, reference, mismatches))
        fewest = min((len(match.mismatches) for match in candidates), default=0)
        nearest += [match for match in candidates if len(match.mismatches) == fewest]
    return nearest


def differences(cell: Mapping[str, Any], run: Mapping[str, Any], system: ModuleType) -> list[str]:
    """Returns "key: published -> run" for the settings that differ and affect results.

    Paths of data and weights are ignored. Only the kind of weights counts: random, packaged or pretrained.

    Args:
      cell: flat config of a published result.
      run: flat config of a run.
      system: the module of `cdl_jax.published` with the settings.
    """
    ignored = (*_NO_EFFECT, *system.irrelevant_prefixes(run))

    def compared(config):
        return {
            key: _kind_of_weights(value) if key.endswith(".weights") else value
            for key, value in config.items()
            if key in system.COMPARED_KEYS or not (configs.is_resumable(key) or key.startswith(ignored))
            if not key.endswith(_NO_EFFECT_ENDINGS)
        }

    # The papers' programs compute in float32, wherever "auto" does not.
    in_float32 = {key: "float32" if configs.is_automatic(key, value) else value for key, value in cell.items()}
    return configs.differences(compared(in_float32), compared(run))


def table(published_table: Table, run_matches: Sequence[Match], version: str = "", *, all_cells: bool = False) -> Rows:
    """Returns a table of published numbers, numbers of runs, and verdicts on metrics.

    Args:
      published_table: the published results.
      run_matches: the result of `matches`.
      version: show only cells of this version; "": all versions.
      all_cells: also show cells without a run.
    """
    metrics = published_table.metrics
    has_settings = published_table.system in plugins.list_plugins("published")
    verdict_without_run = "not run" if has_settings else "no config"
    columns = [column for name in metrics for column in (name, "ours", "reproduced?")]
    rows = [["published result", "settings", "seeds", *columns, "note"]]
    for cells in _identical_cells(published_table, version):
        # The same runs may match a cell with both kinds of settings, and a cell in several versions.
        matches_of_groups: dict[int, list[Match]] = {}
        for match in run_matches:
            if any(match.cell is cell for cell in cells):
                matches_of_groups.setdefault(id(match.group), []).append(match)
        rows += [_table_row(group_matches, metrics) for group_matches in matches_of_groups.values()]
        matched = [match.cell for group_matches in matches_of_groups.values() for match in group_matches]
        without_run = [cell for cell in cells if not any(cell is other for other in matched)]
        if all_cells and without_run:
            rows.append(_row_without_run(without_run, metrics, verdict_without_run))
    return rows


def legend(published_table: Table) -> str:
    """Returns the meaning of the columns of `table`, as one paragraph."""
    tolerances = ", ".join(f"{name} {metric.tolerance:g}" for name, metric in published_table.metrics.items())
    return (
        f"{published_table.paper}. Published: {published_table.source} Ours: mean ± standard deviation over finished "
        f"runs. Reproduced: |ours - published|, which is shown with its sign, is at most max(tolerance, 2 standard "
        f"errors of ours) with at least {MIN_SEEDS} seeds; tolerance: {tolerances}. Settings: those of the cell with "
        "reference=false or true. A run with other settings is shown beside the nearest cell, without a verdict. "
        "Weights are compared only by their kind (pretrained or not): use those of the paper."
    )


def verdict(paper: float, ours: Sequence[float], tolerance: float) -> str:
    """Returns a cell with the verdict on a published number, and the difference.

    The verdict is whether the mean of our values reproduces the number.

    Args:
      paper: the published number.
      ours: one value for each seed.
      tolerance: largest difference that counts as reproduced, unless two standard errors are larger.

    >>> verdict(70.0, [70.9, 71.0, 71.1], 1.0), verdict(70.0, [68.8, 68.9, 69.0], 1.0), verdict(70.0, [70.0], 1.0)
    ('yes (+1.00)', 'no (-1.10)', 'too few seeds (+0.00)')
    """
    if not ours:
        return MISSING
    difference = statistics.fmean(ours) - paper
    if len(ours) < MIN_SEEDS:
        word = "too few seeds"
    else:
        word = "yes" if abs(difference) <= max(tolerance, 2 * standard_error(ours)) else "no"
    return Measured(f"{word} ({difference:+.2f})", {"": word, "difference": difference})


def _identical_cells(published_table, version):
    """Returns lists of cells that differ only in the version and have equal values."""
    cells = {}
    for cell in published_table.cells:
        if not version or cell.choices.get("version") == version:
            cells.setdefault((*_without_version(cell), *cell.values.values()), []).append(cell)
    return cells.values()


def _without_version(cell):
    return [value for key, value in cell.choices.items() if key != "version"]


def _label(cells):
    """Returns the label of cells that differ only in the version."""
    versions = "/".join(dict.fromkeys(cell.choices.get("version", "") for cell in cells))
    return " ".join(filter(None, [versions, *_without_version(cells[0])]))


def _table_row(group_matches: list[Match], metrics: Mapping[str, Metric]) -> list[str]:
    """Returns the row of a group.

    Args:
      group_matches: the group's matches with identical cells.
      metrics: column -> metric.
    """
    match = group_matches[0]
    runs = match.group.runs.values()
    unfinished = sum(not run.finished for run in runs)
    finished = len(runs) - unfinished
    seeds = Measured(f"{finished} ({unfinished} unfinished)" if unfinished else str(finished), {"": finished})
    settings = " or ".join(sorted({f"reference={str(other.reference).lower()}" for other in group_matches}))
    row = [_label([other.cell for other in group_matches]), "other" if match.mismatches else settings, seeds]
    for name, metric in metrics.items():
        paper = match.cell.values[name]
        reported = match.group.values(metric.network, metric.name, finished=True).values()
        ours = [metric.offset + metric.scale * value for value in reported]
        row += [_format_number(paper), format_mean_std(ours), _verdict_cell(match, paper, ours, metric)]
    return [*row, _note(match, settings)]


def _verdict_cell(match, paper, ours, metric):
    if match.mismatches:
        return "no verdict"
    return MISSING if paper is None else verdict(paper, ours, metric.tolerance)


def _note(match, settings):
    """Returns the cell's note, or the settings that differ from the cell's."""
    if not match.mismatches:
        return match.cell.note
    listed = "; ".join(match.mismatches[:_MAX_MISMATCHES])
    more = len(match.mismatches) - _MAX_MISMATCHES
    return f"other settings than {settings}: {listed}" + (f"; and {more} more" if more > 0 else "")


def _row_without_run(cells, metrics, word):
    """Returns the row of identical cells without a run."""
    last = cells[-1]
    row = [_label(cells), MISSING, Measured("0", {"": 0})]
    for name in metrics:
        value = last.values[name]
        row += [_format_number(value), MISSING, MISSING if value is None else word]
    return [*row, last.note]


def _kind_of_weights(value):
    return value if value == "random" or str(value).startswith("package:") else "pretrained"


def _format_number(value):
    return MISSING if value is None else Measured(f"{value:.2f}", {"": value})
