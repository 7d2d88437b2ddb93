"""Draws plots of one run."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cdl_jax.report.drawing import COLORS, HIDDEN, OUTSIDE, new_figure, to_plot, visible
from cdl_jax.report.text import Plot

_MAX_STYLES = 12  # of curves: six colors, solid and dashed
_MAX_MARKED = 12  # points of a curve that are drawn as dots; more of them are a line
_MAX_INSIDE = 4  # names in the legend of a small plot; a longer legend covers the curves

Matrix = Sequence[Sequence[float]]


def accuracy_curves(matrices: Mapping[str, Matrix], metric: str = "accuracy") -> Plot:
    """Plots the mean (solid) and worst (dotted) accuracy of the tasks so far.

    Args:
      matrices: network -> accuracy matrix in percent; row i has the accuracies on tasks 0 to i after task i.
      metric: name of its numbers.

    Returns:
      SVG text with its numbers, as for all functions of this module.
    """
    figure, axes = new_figure(5.5, 3.2)
    for (name, rows), color in zip(matrices.items(), itertools.cycle(COLORS), strict=False):
        x = np.arange(1, len(rows) + 1)
        axes.plot(x, [np.mean(row) for row in rows], "o-", color=color, label=visible(name), markersize=4)
        axes.plot(x, [np.min(row) for row in rows], ":", color=color, label=f"{HIDDEN}{name}, worst task")
    axes.set(xlabel="tasks learned", ylabel=f"{metric}, %", ylim=(0, 102), title="tasks learned so far")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, **(OUTSIDE if len(matrices) > _MAX_INSIDE else {}))
    return to_plot(figure)


def task_curves(rows: Matrix, title: str, metric: str = "accuracy") -> Plot:
    """Plots the accuracy on each task from its own training on.

    Args:
      rows: accuracy matrix in percent; row i has the accuracies on tasks 0 to i after task i.
      title: of the plot.
      metric: name of the numbers.
    """
    import matplotlib

    figure, axes = new_figure(5.5, 3.2)
    colors = matplotlib.colormaps["viridis"](np.linspace(0, 0.9, len(rows)))
    for task, color in enumerate(colors):
        values = [row[task] for row in rows[task:]]
        axes.plot(range(task + 1, len(rows) + 1), values, "o-", color=color, label=f"task {task}", markersize=4)
    axes.set(xlabel="tasks learned", ylabel=f"{metric}, %", ylim=(0, 102), title=visible(title))
    axes.xaxis.get_major_locator().set_params(integer=True)
    if len(rows) <= _MAX_STYLES:
        axes.legend(frameon=False, **OUTSIDE)
    return to_plot(figure)


def learning_rates(lines: Sequence[Mapping[str, Any]]) -> Plot:
    """Plots the learning rate of each phase against the steps of the run.

    Args:
      lines: of metrics.jsonl; lines without "learning_rate" are left out.
    """
    training = [line for line in lines if "learning_rate" in line]
    figure, axes = new_figure(11, 2.2)
    for phase, color in zip(dict.fromkeys(line["phase"] for line in training), itertools.cycle(COLORS), strict=False):
        for i, points in enumerate(_by_task(training, phase, "learning_rate")):
            _plot_points(axes, points, color, visible(phase) if i == 0 else HIDDEN + phase)
    axes.set(xlabel="step", ylabel="learning rate", xlim=(0, 1.01 * _task_ends(lines)[-1]))
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8, ncols=6, loc="lower right", bbox_to_anchor=(1, 1))
    return to_plot(figure)


def precision_over_tasks(numbers: Mapping[str, Mapping[str, Sequence[float | None]]]) -> Plot:
    """Plots average precisions after each task.

    A network has one color, a kind of number one line style.

    Args:
      numbers: network -> kind, such as "new classes" -> percent after each task; None: no number.
    """
    figure, axes = new_figure(6, 3.4)
    for (network, kinds), color in zip(numbers.items(), itertools.cycle(COLORS), strict=False):
        for (kind, values), style in zip(kinds.items(), itertools.cycle(("o-", "s--", "^:")), strict=False):
            label = visible(f"{network}, {kind}")
            axes.plot(range(1, len(values) + 1), np.array(values, float), style, color=color, label=label, markersize=4)
    axes.set(xlabel="tasks learned", ylabel="AP, %")
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
    return to_plot(figure)


def precision_recall(curves: Mapping[str, Sequence[float]], title: str, bold: str = "") -> Plot:
    """Plots precision against recall.

    More than 12 curves have no colors: those that are not bold become thin gray lines.

    Args:
      curves: name -> precision at evenly spaced recalls from 0 to 1.
      title: of the plot.
      bold: name of a curve in thick black.
    """
    figure, axes = new_figure(6, 3.8)
    colors = [color for color in COLORS if not (bold and color == "#000000")]
    styles = [{"linestyle": style, "color": color} for style in ("-", "--") for color in colors]
    plain = [name for name in curves if name != bold]
    if len(plain) > _MAX_STYLES:
        styles = [{"linewidth": 0.7, "color": "0.75"}]
    for name, style in zip(plain, itertools.cycle(styles), strict=False):
        label = visible(name) if len(plain) <= _MAX_STYLES else HIDDEN + name
        axes.plot(np.linspace(0, 1, len(curves[name])), curves[name], label=label, **style)
    if bold:
        axes.plot(np.linspace(0, 1, len(curves[bold])), curves[bold], "k", linewidth=2.5, label=visible(bold))
    axes.set(xlabel="recall", ylabel="precision", xlim=(0, 1.01), ylim=(0, 1.03), title=visible(title))
    axes.legend(frameon=False, **OUTSIDE)
    return to_plot(figure)


def heat_map(rows: Matrix, title: str, top: float = 100, unit: str = "%", digits: int = 0) -> Plot:
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
    figure, axes = new_figure(side + 0.8, side)
    image = axes.imshow(matrix, vmin=0, vmax=top, cmap="cividis")
    if size <= 20:
        for i, row in enumerate(rows):
            for j, value in enumerate(row):
                color = "w" if value < 0.55 * top else "k"
                axes.text(j, i, f"{value:.{digits}f}", ha="center", va="center", fontsize=7, color=color)
    axes.set(xlabel="task", ylabel="after learning task", title=visible(title))
    _set_integer_ticks(axes, size, size)
    figure.colorbar(image, ax=axes, shrink=0.8, label=unit)
    return to_plot(figure)


def matrix_plot(
    rows: Sequence[Sequence[float | None]], row_names: Sequence[str], column_names: Sequence[str], title: str
) -> Plot:
    """Plots a matrix with the numbers in its cells.

    Args:
      rows: numbers around [0, 1]; None: an empty cell.
      row_names: one for each row.
      column_names: one for each column.
      title: of the plot.
    """
    matrix = np.array(rows, float)
    figure, axes = new_figure(1.8 + 0.52 * len(column_names), 1.5 + 0.38 * len(row_names))
    axes.imshow(matrix, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for (i, j), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            color = "w" if value < 0.55 else "k"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(range(len(column_names)), [*map(visible, column_names)], rotation=45, ha="right")
    axes.set_yticks(range(len(row_names)), [*map(visible, row_names)])
    axes.set(title=visible(title))
    return to_plot(figure)


def confusion(shares: Matrix, names: Sequence[str], title: str) -> Plot:
    """Plots a confusion matrix with the names of classes at its axes.

    Args:
      shares: `[n, n]`, percent of the images of a row's class that are predicted as a column's class.
      names: n names of classes.
      title: of the plot.
    """
    side = min(2.2 + 0.13 * len(names), 9)
    figure, axes = new_figure(side + 0.8, side)
    image = axes.imshow(np.array(shares, float), vmin=0, vmax=100, cmap="cividis")
    axes.set_xticks(range(len(names)), [*map(visible, names)], rotation=90, fontsize=7)
    axes.set_yticks(range(len(names)), [*map(visible, names)], fontsize=7)
    axes.set(xlabel="predicted class", ylabel="class", title=visible(title))
    figure.colorbar(image, ax=axes, shrink=0.8, label="%")
    return to_plot(figure)


def kl_by_age(rows: Matrix) -> Plot:
    """Plots KL divergences against the number of tasks since a column's task.

    There is a line for each task, and a chained mean.

    Fewer tasks reach a higher age, so a plain mean over the tasks of an age would compare different tasks. The chained
    mean begins with the mean at age 0 and adds, from age to age, the mean change of the tasks that have both ages.

    Args:
      rows: rows of 1, 2, ... KL divergences in nats; column j belongs to task j.
    """
    figure, axes = new_figure(6, 3.4)
    by_task = [np.array([row[task] for row in rows[task:]]) for task in range(len(rows))]
    for task, values in enumerate(by_task):
        label = f"{HIDDEN}task {task}"
        axes.plot(np.arange(len(values)), values, ".-", color="0.75", linewidth=0.9, label=label)
    changes = [np.mean([np.diff(values)[age] for values in by_task if age < len(values) - 1])
               for age in range(len(rows) - 1)]  # fmt: skip
    chained = np.cumsum([np.mean([values[0] for values in by_task]), *changes])
    axes.plot(np.arange(len(rows)), chained, "o-", color=COLORS[0], label="chained mean", markersize=4)
    axes.set(xlabel="tasks learned since", ylabel="KL, nats")
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    return to_plot(figure)


def parameter_sweep(values: Sequence[float], means: Sequence[float], usual: float) -> Plot:
    """Plots mean accuracy against a swept weight.

    Args:
      values: of the weight.
      means: accuracies in percent.
      usual: the value that the run itself uses, marked by a dotted line.
    """
    figure, axes = new_figure(6, 3.4)
    axes.plot(values, means, "o-", color=COLORS[0], markersize=4)
    axes.axvline(usual, color="0.5", ls=":", lw=0.8)
    axes.set(xlabel="weight", ylabel="accuracy, %")
    return to_plot(figure)


def losses(lines: Sequence[Mapping[str, Any]]) -> Plot:
    """Plots every loss term of each phase against the steps of the run.

    Dotted lines separate the tasks.

    A task ends at the step of its last evaluation. All panels have the same axes. Names that end in "_error" are no
    losses but counts or percents of another scale, so they are left out.

    Args:
      lines: of metrics.jsonl; lines without "loss" mark the ends of tasks.
    """
    training = [line for line in lines if "loss" in line]
    phases = list(dict.fromkeys(line["phase"] for line in training))
    figure, axes = new_figure(11, 2.6 * len(phases), len(phases))
    no_terms = {"step", "task", "phase", "epoch", "learning_rate"}
    for phase, ax in zip(phases, np.atleast_1d(axes), strict=True):
        names = dict.fromkeys(key for line in training if line["phase"] == phase for key in line)
        terms = [name for name in names if name not in no_terms and not name.endswith("_error")]
        for term, color in zip(sorted(terms, key=lambda t: t != "loss"), itertools.cycle(COLORS), strict=False):
            for i, points in enumerate(_by_task(training, phase, term)):
                _plot_points(ax, points, color, visible(term) if i == 0 else HIDDEN + term)
        for step in _task_ends(lines)[:-1]:
            ax.axvline(step, color="0.5", ls=":", lw=0.8)
        ax.set_ylabel("loss")
        ax.set_title(visible(phase), loc="left")
        ax.legend(frameon=False, fontsize=8, ncols=6, loc="lower right", bbox_to_anchor=(1, 1))
    ax.set(xlabel="step", xlim=(0, 1.01 * _task_ends(lines)[-1]))
    return to_plot(figure)


def values_over_steps(values: Mapping[int, float], label: str, floor: float | None = None) -> Plot:
    """Plots a number against the steps of the run.

    Args:
      values: step -> number.
      label: of the number.
      floor: drawn as a dotted line; None, the default: no line.
    """
    figure, axes = new_figure(4.6, 2.8)
    axes.plot(list(values), list(values.values()), "o-", color=COLORS[0], markersize=3)
    if floor is not None:
        axes.axhline(floor, color="0.5", ls=":")
    axes.set(xlabel="step", ylabel=visible(label.rpartition("/")[2]))
    return to_plot(figure)


def _by_task(lines, phase, name):
    """Returns for each task the points (step, value) of a phase."""
    tasks = {}
    for line in lines:
        if line["phase"] == phase:
            tasks.setdefault(line["task"], []).append((line["step"], line.get(name, np.nan)))
    return list(tasks.values())


def _task_ends(lines):
    """Returns the last step of each task."""
    ends = {}
    for line in lines:
        ends[line["task"]] = max(line["step"], ends.get(line["task"], 0))
    return [ends[task] for task in sorted(ends)]


def _plot_points(axes, points, color, label):
    """Plots points as a line, and few points as dots too.

    A single point has no line.
    """
    marker = "." if len(points) <= _MAX_MARKED else ""
    axes.plot(*zip(*points, strict=True), color=color, label=label, linewidth=1.1, marker=marker)


def selection(rows: Matrix, title: str) -> Plot:
    """Plots the share of each prompt among the selections of each task's test images.

    Args:
      rows: counts; a row for each task, a column for each prompt.
      title: of the plot.
    """
    counts = np.asarray(rows, float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = new_figure(min(1.8 + 0.22 * counts.shape[1], 11), min(1.3 + 0.26 * counts.shape[0], 8))
    image = axes.imshow(shares, vmin=0, cmap="cividis", aspect="auto")
    axes.set(xlabel="prompt", ylabel="task", title=visible(title))
    _set_integer_ticks(axes, *counts.shape)
    figure.colorbar(image, ax=axes, label="share")
    return to_plot(figure)


def scatter(points: Matrix, labels: Sequence[str], title: str) -> Plot:
    """Plots labeled points in a plane whose axes have no meaning.

    Each label has one color and marker.

    Args:
      points: `[n, 2]`.
      labels: n of them. Beyond seven distinct labels the marker changes too.
      title: of the plot.
    """
    figure, axes = new_figure(6, 5)
    styles = itertools.product(".x+^", COLORS)
    for label, (marker, color) in zip(np.unique(labels), itertools.cycle(styles), strict=False):
        members = np.asarray(labels) == label
        axes.plot(*np.asarray(points)[members].T, marker, color=color, label=visible(label), markersize=4)
    axes.set(xticks=[], yticks=[], title=visible(title))
    axes.legend(frameon=False, **OUTSIDE)
    return to_plot(figure)


def _set_integer_ticks(axes, rows, columns):
    """Puts about ten ticks at integers on each axis."""
    axes.set_xticks(range(0, columns, max(1, columns // 10)))
    axes.set_yticks(range(0, rows, max(1, rows // 10)))
