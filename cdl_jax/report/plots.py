"""Draws plots of runs as SVG text, the same text for the same numbers."""

import io
import itertools
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cdl_jax.runtime.console import one_line

# The palette of Okabe and Ito, which color-blind readers can distinguish too.
_COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_MAX_STYLES = 12  # of curves: six colors, solid and dashed

Matrix = Sequence[Sequence[float]]


def accuracy_curves(matrices: Mapping[str, Matrix], metric: str = "accuracy") -> str:
    """Plots the mean (solid) and worst (dotted) accuracy over the tasks learned so far, after each task.

    Args:
      matrices: network -> accuracy matrix in percent; row i has the accuracies on tasks 0 to i after task i.
      metric: name of its numbers.

    Returns:
      SVG text, as for all functions of this module.
    """
    figure, axes = _new_figure(6, 3.4)
    for (name, rows), color in zip(matrices.items(), itertools.cycle(_COLORS), strict=False):
        x = np.arange(1, len(rows) + 1)
        axes.plot(x, [np.mean(row) for row in rows], "o-", color=color, label=_visible(name), markersize=4)
        axes.plot(x, [np.min(row) for row in rows], ":", color=color)
    axes.set(xlabel="tasks learned", ylabel=f"{metric}, %", ylim=(0, 102))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    return _to_svg(figure)


@dataclass(frozen=True)
class Curve:
    """Numbers after each task.

    Attributes:
      values: percent.
      start: index of the first value to draw: of a branch the task at which it leaves its parent, default 0.
    """

    values: Sequence[float]
    start: int = 0


def curves_with_branches(curves: Mapping[str, Curve], metric: str = "accuracy") -> str:
    """Plots curves over the tasks learned; the curve of a branch (dashed) begins on that of its parent.

    Args:
      curves: by name, parents and branches alike.
      metric: name of the numbers, of which a value is the mean over the tasks learned so far.
    """
    figure, axes = _new_figure(6, 3.4)
    for (name, curve), color in zip(curves.items(), itertools.cycle(_COLORS), strict=False):
        x = range(curve.start + 1, len(curve.values) + 1)
        axes.plot(x, curve.values[curve.start :], "o--" if curve.start else "o-", color=color, label=_visible(name),
                  markersize=4)  # fmt: skip
    axes.set(xlabel="tasks learned", ylabel=f"mean {metric}, %")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, -0.18))  # names of branches are long
    return _to_svg(figure)


def precision_over_tasks(numbers: Mapping[str, Mapping[str, Sequence[float | None]]]) -> str:
    """Plots average precisions after each task: one color a network, one line style a kind of number.

    Args:
      numbers: network -> kind, such as "new classes" -> percent after each task; None: no number.
    """
    figure, axes = _new_figure(6, 3.4)
    for (network, kinds), color in zip(numbers.items(), itertools.cycle(_COLORS), strict=False):
        for (kind, values), style in zip(kinds.items(), itertools.cycle(("o-", "s--", "^:")), strict=False):
            label = _visible(f"{network}, {kind}")
            axes.plot(range(1, len(values) + 1), np.array(values, float), style, color=color, label=label, markersize=4)
    axes.set(xlabel="tasks learned", ylabel="AP, %")
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return _to_svg(figure)


def precision_recall(curves: Mapping[str, Sequence[float]], title: str, bold: str = "") -> str:
    """Plots precision against recall.

    More than 12 curves have no colors: those that are not bold become thin gray lines.

    Args:
      curves: name -> precision at evenly spaced recalls from 0 to 1.
      title: of the plot.
      bold: name of a curve in thick black.
    """
    figure, axes = _new_figure(6, 3.8)
    colors = [color for color in _COLORS if not (bold and color == "#000000")]
    styles = [{"linestyle": style, "color": color} for style in ("-", "--") for color in colors]
    plain = [name for name in curves if name != bold]
    if len(plain) > _MAX_STYLES:
        styles = [{"linewidth": 0.7, "color": "0.75"}]
    for name, style in zip(plain, itertools.cycle(styles), strict=False):
        label = _visible(name) if len(plain) <= _MAX_STYLES else "_"  # no entry of the legend
        axes.plot(np.linspace(0, 1, len(curves[name])), curves[name], label=label, **style)
    if bold:
        axes.plot(np.linspace(0, 1, len(curves[bold])), curves[bold], "k", linewidth=2.5, label=_visible(bold))
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.03), title=_visible(title))
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return _to_svg(figure)


def heat_map(rows: Matrix, title: str, top: float = 100, unit: str = "%", digits: int = 0) -> str:
    """Plots a lower triangular matrix, with the numbers in its cells up to 20 rows.

    Args:
      rows: rows of 1, 2, ... numbers in [0, top].
      title: of the plot.
      top: the value with the lightest color.
      unit: of the numbers.
      digits: number of decimals.
    """
    size = len(rows)
    matrix = np.full((size, size), np.nan)
    for i, row in enumerate(rows):
        matrix[i, : i + 1] = row
    side = min(1.4 + 0.42 * size, 9)
    figure, axes = _new_figure(side + 0.8, side)
    image = axes.imshow(matrix, vmin=0, vmax=top, cmap="cividis")
    if size <= 20:
        for i, row in enumerate(rows):
            for j, value in enumerate(row):
                color = "w" if value < 0.55 * top else "k"
                axes.text(j, i, f"{value:.{digits}f}", ha="center", va="center", fontsize=7, color=color)
    axes.set(xlabel="task", ylabel="after learning task", title=_visible(title))
    _set_integer_ticks(axes, size, size)
    figure.colorbar(image, ax=axes, shrink=0.8, label=unit)
    return _to_svg(figure)


def matrix_plot(
    rows: Sequence[Sequence[float | None]], row_names: Sequence[str], column_names: Sequence[str], title: str
) -> str:
    """Plots a matrix with the numbers in its cells.

    Args:
      rows: numbers around [0, 1]; None: an empty cell.
      row_names: one for each row.
      column_names: one for each column.
      title: of the plot.
    """
    matrix = np.array(rows, float)
    figure, axes = _new_figure(1.8 + 0.52 * len(column_names), 1.5 + 0.38 * len(row_names))
    axes.imshow(matrix, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for (i, j), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            color = "w" if value < 0.55 else "k"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(range(len(column_names)), [*map(_visible, column_names)], rotation=45, ha="right")
    axes.set_yticks(range(len(row_names)), [*map(_visible, row_names)])
    axes.set(title=_visible(title))
    return _to_svg(figure)


def kl_by_age(rows: Matrix) -> str:
    """Plots KL divergences against the number of tasks learned since a column's task: each task and the mean.

    Args:
      rows: rows of 1, 2, ... KL divergences in nats; column j belongs to task j.
    """
    figure, axes = _new_figure(6, 3.4)
    ages = [np.array([row[task] for row in rows[task:]]) for task in range(len(rows))]
    for values in ages:
        axes.plot(np.arange(len(values)), values, ".-", color="0.75", linewidth=0.9)
    means = [np.mean([values[age] for values in ages if age < len(values)]) for age in range(len(rows))]
    axes.plot(np.arange(len(rows)), means, "o-", color=_COLORS[0], label="mean over tasks of that age", markersize=4)
    axes.set(xlabel="tasks learned since", ylabel="KL, nats")
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    return _to_svg(figure)


def parameter_sweep(values: Sequence[float], means: Sequence[float], usual: float) -> str:
    """Plots mean accuracy against a swept weight.

    Args:
      values: of the weight.
      means: accuracies in percent.
      usual: the value that the run itself uses, marked by a dotted line.
    """
    figure, axes = _new_figure(6, 3.4)
    axes.plot(values, means, "o-", color=_COLORS[0], markersize=4)
    axes.axvline(usual, color="0.5", ls=":", lw=0.8)
    axes.set(xlabel="weight", ylabel="accuracy, %")
    return _to_svg(figure)


def sweep_plot(lines: Mapping[str, Mapping[Any, Sequence[float]]], xlabel: str, metric: str = "accuracy") -> str:
    """Plots accuracies against the values of an option: the mean of each line, and every seed as a dot.

    Args:
      lines: label -> value -> accuracies in percent. Values that are text are placed side by side.
      xlabel: name of the option.
      metric: name of the numbers.
    """
    figure, axes = _new_figure(6, 3.4)
    lines = {
        name: {one_line(value) if isinstance(value, str) else value: accuracies for value, accuracies in line.items()}
        for name, line in lines.items()
    }
    for (name, line), color in zip(lines.items(), itertools.cycle(_COLORS), strict=False):
        line = {value: accuracies for value, accuracies in line.items() if accuracies}
        if not line:
            continue
        means = [np.mean(accuracies) for accuracies in line.values()]
        axes.plot(list(line), means, "-", color=color, label=_visible(name))
        dots = [(value, accuracy) for value, accuracies in line.items() for accuracy in accuracies]
        axes.plot(*zip(*dots, strict=True), "o", color=color, markersize=4, alpha=0.7)
    axes.set(xlabel=_visible(xlabel), ylabel=f"{metric}, %; line: mean")
    axes.set_xticks(sorted({value for line in lines.values() for value in line}))
    axes.grid(axis="y", color="0.9")
    axes.legend(frameon=False)
    return _to_svg(figure)


def dot_plot(values: Mapping[str, Sequence[float]], xlabel: str) -> str:
    """Plots, for each name on a line, its values as dots and their mean as a bar; the first name is at the top."""
    figure, axes = _new_figure(4.5 + 0.08 * max(map(len, values)), 0.9 + 0.3 * len(values))
    for y, numbers in enumerate(values.values()):
        axes.plot(numbers, [y] * len(numbers), "o", color=_COLORS[0], markersize=4, alpha=0.7)
        axes.plot([np.mean(numbers)], [y], "|", color=_COLORS[1], markersize=14, markeredgewidth=2)
    axes.set_yticks(range(len(values)), [*map(_visible, values)])
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set(xlabel=_visible(xlabel))
    axes.grid(axis="x", color="0.9")
    return _to_svg(figure)


def accuracy_vs_traffic(points: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> str:
    """Plots accuracy against exchanged megabytes: means, and the standard deviation of accuracy over runs.

    Args:
      points: name -> (megabytes, accuracies in percent), one each per run. A name that exchanges nothing is a dotted
        line.
    """
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axes = _new_figure(8, 4)
    styles = zip(itertools.product("os^Dv", _COLORS), points.items(), strict=False)
    for (marker, color), (name, (amounts, values)) in styles:
        if not any(amounts):
            axes.axhline(np.mean(values), color=color, ls=":", label=_visible(name))
            continue
        std = np.std(values, ddof=1) if len(values) > 1 else None
        axes.errorbar(np.mean(amounts), np.mean(values), std, fmt=marker, color=color, label=_visible(name), capsize=3)
    axes.set(xlabel="megabytes exchanged", ylabel="accuracy, %", xscale="log")
    axes.xaxis.set(
        major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator(), major_formatter=lambda x, _: f"{x:g}"
    )
    axes.grid(axis="y", color="0.9")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return _to_svg(figure)


def line_plot(values: Mapping[str, Sequence[float]], xlabel: str, ylabel: str) -> str:
    """Plots each name's values against their positions 0, 1, 2, ..."""
    figure, axes = _new_figure(6, 3.4)
    for (name, numbers), color in zip(values.items(), itertools.cycle(_COLORS), strict=False):
        axes.plot(numbers, ".-", color=color, label=_visible(name), markersize=4)
    axes.set(xlabel=_visible(xlabel), ylabel=ylabel)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return _to_svg(figure)


def losses(lines: Sequence[Mapping[str, Any]]) -> str:
    """Plots every loss term of each phase against the steps of the run; dotted lines separate the tasks.

    Names that end in "_error" are no losses but counts or percents of another scale, so they are left out.

    Args:
      lines: of metrics.jsonl; lines without "loss" are left out.
    """
    phases = list(dict.fromkeys(line["phase"] for line in lines if "loss" in line))
    figure, axes = _new_figure(11, 2.6 * len(phases), len(phases))
    for phase, ax in zip(phases, np.atleast_1d(axes), strict=True):
        phase_lines = [line for line in lines if line.get("phase") == phase]
        no_terms = {"step", "task", "phase", "epoch", "learning_rate"}
        names = dict.fromkeys(key for line in phase_lines for key in line if not key.endswith("_error"))
        terms = [name for name in names if name not in no_terms]
        for term, color in zip(sorted(terms, key=lambda t: t != "loss"), itertools.cycle(_COLORS), strict=False):
            tasks = {}
            for line in phase_lines:
                tasks.setdefault(line["task"], []).append((line["step"], line.get(term, np.nan)))
            for i, points in enumerate(tasks.values()):
                label = None if i else _visible(term)
                ax.plot(*zip(*points, strict=True), color=color, label=label, linewidth=1.1)
        for task in sorted({line["task"] for line in phase_lines})[1:]:
            first_step = min(line["step"] for line in phase_lines if line["task"] == task)
            ax.axvline(first_step, color="0.5", ls=":", lw=0.8)
        ax.set(xlabel="step", ylabel="loss")
        ax.set_title(_visible(phase), loc="left")
        ax.legend(frameon=False, fontsize=8, ncols=6, loc="lower right", bbox_to_anchor=(1, 1))
    return _to_svg(figure)


def selection(rows: Matrix, title: str) -> str:
    """Plots the share of each prompt among the selections of each task's test images.

    Args:
      rows: counts; a row for each task, a column for each prompt.
      title: of the plot.
    """
    counts = np.asarray(rows, float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = _new_figure(min(1.8 + 0.22 * counts.shape[1], 11), min(1.3 + 0.26 * counts.shape[0], 8))
    image = axes.imshow(shares, vmin=0, cmap="cividis", aspect="auto")
    axes.set(xlabel="prompt", ylabel="task", title=_visible(title))
    _set_integer_ticks(axes, *counts.shape)
    figure.colorbar(image, ax=axes, label="share")
    return _to_svg(figure)


def scatter(points: Matrix, labels: Sequence[str], title: str) -> str:
    """Plots points in a plane whose axes have no meaning, with one color and marker for each label.

    Args:
      points: `[n, 2]`.
      labels: n of them. Beyond seven distinct labels the marker changes too.
      title: of the plot.
    """
    figure, axes = _new_figure(6, 5)
    styles = itertools.product(".x+^", _COLORS)
    for label, (marker, color) in zip(np.unique(labels), itertools.cycle(styles), strict=False):
        members = np.asarray(labels) == label
        axes.plot(*np.asarray(points)[members].T, marker, color=color, label=_visible(label), markersize=4)
    axes.set(xticks=[], yticks=[], title=_visible(title))
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return _to_svg(figure)


def _set_integer_ticks(axes, rows, columns):
    """Puts about ten ticks at integers on each axis."""
    axes.set_xticks(range(0, columns, max(1, columns // 10)))
    axes.set_yticks(range(0, rows, max(1, rows // 10)))


def _new_figure(width, height, panels=1):
    """Returns a figure of a size in inches and its axes, one panel below the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(panels, 1, sharex=True)
    for ax in np.atleast_1d(axes):
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _visible(text: str) -> str:
    """Returns a name on one line that matplotlib shows as it is: legends hide names that begin with "_"."""
    text = one_line(text)
    return f" {text}" if text.startswith("_") else text


def _to_svg(figure) -> str:
    """Returns a figure as SVG text without date and version, so that it is reproducible."""
    import matplotlib
    from matplotlib.text import Text

    text = io.StringIO()
    for label in figure.findobj(Text):  # names may contain "$", which would begin a formula; the context handles ticks
        label.set_parse_math(False)
    settings = {"svg.hashsalt": "cdl_jax", "svg.fonttype": "path", "text.parse_math": False}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # such a character becomes a box
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return text.getvalue()[text.getvalue().index("<svg") :]
