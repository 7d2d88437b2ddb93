"""Shows several runs on one page: curves, differences with their p-values, and links to the page of each run."""

import os
import statistics
from collections.abc import Sequence
from pathlib import Path

from cdl_jax.report import plots, text
from cdl_jax.report.groups import Group, Seeds, metric_of
from cdl_jax.report.tables import standard_error
from cdl_jax.report.text import MISSING, Measured, Rows


def html_parts(groups: Sequence[Group], names: Sequence[str], page: Path) -> list[str]:
    """Returns the HTML that follows the tables of a comparison.

    Args:
      groups: as `read_groups` returns them.
      names: a label for each group.
      page: the file that will hold the HTML; links are relative to its folder.
    """
    curves = {name: [*_curves(group).values()] for name, group in zip(names, groups, strict=True)}
    curves = {name: seeds for name, seeds in curves.items() if seeds}
    parts = []
    if any(len(seed) > 1 for seeds in curves.values() for seed in seeds):
        caption = (
            "Mean over the tasks learned so far, of each run's headline. Bands: one standard deviation over seeds."
        )
        plot = plots.run_curves(curves, metric_of(groups))
        parts.append(text.figure(plot, "curves of all runs", caption, "wide"))
    rows = differences(groups, names)
    if len(rows) > 1:
        legend = "Paired by seeds; p: two-sided t-test of the mean difference, without correction for several tests."
        parts += ["<h2>Differences to the first run</h2>", text.html_table(rows, "differences")]
        parts.append(f"<p class=quiet>{legend}</p>")
    return [*parts, "<h2>Pages of the runs</h2>", _links(groups, names, page)]


def differences(groups: Sequence[Group], names: Sequence[str]) -> Rows:
    """Returns a table of each group's difference to the first one, with the p-value of a paired t-test.

    Args:
      groups: as `read_groups` returns them; unfinished runs are left out.
      names: a label for each group.
    """
    first = groups[0].values("headline", "last", finished=True)
    rows = [["run", "seeds", "Δ of last", "standard error", "p"]]
    for name, group in list(zip(names, groups, strict=True))[1:]:
        values = group.values("headline", "last", finished=True)
        changes = [values[seed] - first[seed] for seed in values if seed in first]
        if changes:
            mean, error, p = statistics.fmean(changes), standard_error(changes), p_value(changes)
            numbers = Measured(f"{mean:+.2f}", {"": mean}), Measured(text.number(error), {"": error})
            rows.append([name, str(len(changes)), *numbers, MISSING if p is None else Measured(f"{p:.2g}", {"": p})])
    return rows


def p_value(differences: Sequence[float]) -> float | None:
    """Returns the p-value of a two-sided t-test that the mean of paired differences is 0.

    Args:
      differences: one for each pair.

    Returns:
      None for fewer than two differences, or for equal ones, of which the test has no variance.

    >>> round(p_value([1.0, 2.0, 3.0]), 4), p_value([1.0]), p_value([2.0, 2.0])
    (0.0742, None, None)
    """
    from scipy import stats

    if len(differences) < 2 or len(set(differences)) == 1:
        return None
    return float(stats.ttest_1samp(differences, 0.0).pvalue)


def _curves(group: Group) -> dict[Seeds, list[float]]:
    """Returns for each seed the mean over the tasks learned so far, after each task, of the headline's networks."""
    curves = {}
    for seeds, run in group.runs.items():
        headline = run.headline or [*run.curves][-1:]
        networks = [run.curves[name] for name in headline if name in run.curves]
        if networks and len(networks) == len(headline):
            curves[seeds] = [statistics.fmean(values) for values in zip(*networks, strict=True)]
    return curves


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
