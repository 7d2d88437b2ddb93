"""Shows several runs on one page: curves, differences and links to their pages."""

import os
import re
import statistics
from collections.abc import Sequence
from pathlib import Path

from cdl_jax.errors import UserError
from cdl_jax.report import comparison_plots, text
from cdl_jax.report.grid import p_value
from cdl_jax.report.groups import Group, metric_of
from cdl_jax.report.tables import standard_error
from cdl_jax.report.text import MISSING, Measured, Plot, Rows
from cdl_jax.runtime import paths


def html_parts(groups: Sequence[Group], names: Sequence[str], page: Path) -> list[str]:
    """Returns the HTML that follows the tables of a comparison.

    Args:
      groups: as `read_groups` returns them.
      names: a label for each group.
      page: the file that will hold the HTML; links are relative to its folder.
    """
    parts = []
    if any(len(run.curve) > 1 for group in groups for run in group.runs.values()):
        caption = (
            "Mean over the tasks learned so far, of each run's headline. Bands: one standard deviation over seeds. "
            "Dashed: a branch, from the task at which it leaves its parent."
        )
        parts.append(text.figure(curves_plot(groups, names), "curves of all runs", caption, "wide"))
    rows = differences(groups, names)
    if len(rows) > 1:
        legend = "Paired by seeds; p: two-sided t-test of the mean difference, without correction for several tests."
        parts += ["<h2>Differences to the first run</h2>", text.html_table(rows, "differences")]
        parts.append(f"<p class=quiet>{legend}</p>")
    return [*parts, "<h2>Pages of the runs</h2>", _links(groups, names, page)]


def differences(groups: Sequence[Group], names: Sequence[str]) -> Rows:
    """Returns a table of each group's difference to the first group.

    Each difference has the p-value of a paired t-test. Groups with another metric have no difference.

    Args:
      groups: as `read_groups` returns them; unfinished runs are left out.
      names: a label for each group.
    """
    reference = groups[0].values("headline", "last", finished=True)
    rows = [["run", "seeds", "Δ of last", "standard error", "p"]]
    for name, group in list(zip(names, groups, strict=True))[1:]:
        if metric_of([group]) != metric_of(groups[:1]):
            continue
        values = group.values("headline", "last", finished=True)
        changes = [values[seed] - reference[seed] for seed in values if seed in reference]
        if changes:
            mean, error, p = statistics.fmean(changes), standard_error(changes), p_value(changes)
            numbers = Measured(f"{mean:+.2f}", {"": mean}), Measured(text.number(error), {"": error})
            rows.append([name, str(len(changes)), *numbers, MISSING if p is None else Measured(f"{p:.2g}", {"": p})])
    return rows


def curves_plot(groups: Sequence[Group], names: Sequence[str]) -> Plot:
    """Returns a plot of the mean accuracy over the tasks so far, for each group.

    Args:
      groups: as `read_groups` returns them.
      names: a label for each group.

    Raises:
      UserError: no run has a matrix.
    """
    curves = {}
    for name, group in zip(names, groups, strict=True):
        if seeds := [run.curve for run in group.runs.values() if run.curve]:
            curves[name] = comparison_plots.Curve(seeds, _first_own_point(group, groups))
    if not curves:
        raise UserError("--plot-curves: these results have no accuracy matrices: leave --plot-curves out")
    return comparison_plots.run_curves(curves, metric_of(groups))


def _first_own_point(group: Group, groups: Sequence[Group]) -> int:
    """Returns the task at which a branch's curve leaves that of its parent.

    It is 0 if the parent is not plotted.
    """
    run = next(iter(group.runs.values()))
    if run.parent is None:
        return 0
    parent = str(paths.resolve(run.parent[0]).resolve())
    folders = {folder.resolve() for g in groups for r in g.runs.values() for folder in (r.folder, r.folder.parent)}
    plotted_folders = {re.sub(r"\bseed_\d+$", "seed_*", str(folder)) for folder in folders}
    return run.parent[1] if re.sub(r"\bseed_\d+$", "seed_*", parent) in plotted_folders else 0


def _links(groups, names, page):
    """Returns a list of links to the report pages of all runs."""
    items = []
    for name, group in zip(names, groups, strict=True):
        links = []
        for seeds, run in group.runs.items():
            address = os.path.relpath(run.folder.absolute() / "report.html", page.absolute().parent)
            links.append(text.link(address, f"seed {seeds[0]}"))
        items.append(f"<li>{text.escape(name)}: {', '.join(links)}</li>")
    return f"<ul>{''.join(items)}</ul>"
