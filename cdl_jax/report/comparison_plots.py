"""Draws plots of several runs."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from cdl_jax.report.drawing import COLORS, HIDDEN, OUTSIDE, new_figure, to_plot, visible
from cdl_jax.report.text import Plot
from cdl_jax.runtime.console import one_line


@dataclass(frozen=True)
class Curve:
    """Numbers after each task.

    Attributes:
      seeds: for each seed the percent after each task; seeds may have different lengths.
      start: index of the first value to draw: of a branch the task at which it leaves its parent, default 0.
    """

    seeds: Sequence[Sequence[float]]
    start: int = 0


def run_curves(curves: Mapping[str, Curve], metric: str = "accuracy") -> Plot:
    """Plots the mean accuracy over the tasks so far of several runs.

    The line is the mean over seeds, the band one standard deviation.

    The curve of a branch (dashed) begins on that of its parent.

    Args:
      curves: label -> curve, parents and branches alike.
      metric: name of the numbers.
    """
    figure, axes = new_figure(8, 4)
    for (label, curve), (marker, color) in zip(
        curves.items(), itertools.cycle(itertools.product("os^D", COLORS)), strict=False
    ):
        length = min(map(len, curve.seeds))
        values = np.array([seed[curve.start : length] for seed in curve.seeds], float)
        x, mean = np.arange(curve.start + 1, length + 1), values.mean(axis=0)
        style = "--" if curve.start else "-"
        axes.plot(x, mean, style, marker=marker, color=color, label=visible(label), markersize=4)
        if len(values) > 1:
            deviation = values.std(axis=0, ddof=1)
            axes.fill_between(x, mean - deviation, mean + deviation, color=color, alpha=0.15, linewidth=0)
    axes.set(xlabel="tasks learned", ylabel=f"mean {metric} over the tasks learned, %")
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", color="0.9")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(0, -0.15))  # names of branches are long
    return to_plot(figure)


def sweep_plot(lines: Mapping[str, Mapping[Any, Mapping[Any, float]]], xlabel: str, metric: str = "accuracy") -> Plot:
    """Plots accuracies against the values of an option.

    A line is the mean over seeds, and each seed is a dot.

    Args:
      lines: label -> value -> seed -> accuracy in percent. Values that are text are placed side by side.
      xlabel: name of the option.
      metric: name of the numbers.
    """
    figure, axes = new_figure(6, 3.4)
    lines = {
        name: {one_line(value) if isinstance(value, str) else value: [*seeds.values()] for value, seeds in line.items()}
        for name, line in lines.items()
    }
    for (name, line), color in zip(lines.items(), itertools.cycle(COLORS), strict=False):
        line = {value: accuracies for value, accuracies in line.items() if accuracies}
        if not line:
            continue
        means = [np.mean(accuracies) for accuracies in line.values()]
        axes.plot(list(line), means, "-", color=color, label=visible(name))
        dots = [(value, accuracy) for value, accuracies in line.items() for accuracy in accuracies]
        label = f"{HIDDEN}{name}, each seed"
        axes.plot(*zip(*dots, strict=True), "o", color=color, markersize=4, alpha=0.7, label=label)
    axes.set(xlabel=visible(xlabel), ylabel=f"{metric}, %; line: mean")
    axes.set_xticks(sorted({value for line in lines.values() for value in line}))
    axes.grid(axis="y", color="0.9")
    axes.legend(frameon=False)
    return to_plot(figure)


def dot_plot(values: Mapping[str, Sequence[float]], xlabel: str) -> Plot:
    """Plots the values of each name on a line of its own.

    Values are dots, and their mean is a bar. The first name is at the top.
    """
    figure, axes = new_figure(4.5 + 0.08 * max(map(len, values)), 0.9 + 0.3 * len(values))
    for y, numbers in enumerate(values.values()):
        axes.plot(numbers, [y] * len(numbers), "o", color=COLORS[0], markersize=4, alpha=0.7, label=f"{HIDDEN}each")
        axes.plot([np.mean(numbers)], [y], "|", color=COLORS[1], markersize=14, markeredgewidth=2)
    axes.set_yticks(range(len(values)), [*map(visible, values)])
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set(xlabel=visible(xlabel))
    axes.grid(axis="x", color="0.9")
    return to_plot(figure)


def accuracy_vs_amount(
    points: Mapping[str, tuple[Sequence[float], Sequence[float]]], xlabel: str, metric: str = "accuracy"
) -> Plot:
    """Plots mean accuracy against the mean of an amount.

    An error bar is the standard deviation of accuracy over runs.

    Args:
      points: name -> (amounts, accuracies in percent), one each per run. A name whose amounts are 0 is a dotted line.
      xlabel: what is plotted along the logarithmic x axis.
      metric: name of the numbers, default "accuracy".
    """
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axes = new_figure(8, max(4, 0.19 * len(points) + 0.4))  # a line of the legend takes 0.19 inches
    styles = itertools.cycle(itertools.product("os^Dv", COLORS))
    for (marker, color), (name, (amounts, values)) in zip(styles, points.items(), strict=False):
        if not any(amounts):
            axes.axhline(np.mean(values), color=color, ls=":", label=visible(name))
            continue
        std = np.std(values, ddof=1) if len(values) > 1 else None
        axes.errorbar(np.mean(amounts), np.mean(values), std, fmt=marker, color=color, label=visible(name), capsize=3)
    axes.set(xlabel=xlabel, ylabel=f"{metric}, %", xscale="log")
    axes.xaxis.set(
        major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator(), major_formatter=lambda x, _: f"{x:g}"
    )
    axes.grid(axis="y", color="0.9")
    axes.legend(frameon=False, **OUTSIDE)
    return to_plot(figure)


def accuracy_vs_traffic(points: Mapping[str, tuple[Sequence[float], Sequence[float]]]) -> Plot:
    """Plots accuracy against exchanged megabytes, see `accuracy_vs_amount`."""
    return accuracy_vs_amount(points, "megabytes exchanged")


def gain_vs_strength(points: Mapping[str, tuple[Sequence[float], Sequence[float]]], metric: str = "accuracy") -> Plot:
    """Plots the gain of each learner by a scheme against the learner's own accuracy.

    Each scheme has one color.

    Args:
      points: scheme -> (values of the learners alone in percent, gains in points).
      metric: name of the numbers.
    """
    figure, axes = new_figure(8, 4)
    for (marker, color), (name, (strengths, gains)) in zip(
        itertools.cycle(itertools.product("os^Dv", COLORS)), points.items(), strict=False
    ):
        axes.plot(strengths, gains, marker, color=color, label=visible(name))
    axes.axhline(0, color="0.5", lw=0.8)
    axes.set(xlabel=f"{metric} of the learner alone, %", ylabel="gain, points")
    axes.grid(axis="y", color="0.9")
    axes.legend(frameon=False, **OUTSIDE)
    return to_plot(figure)


def line_plot(values: Mapping[str, Sequence[float]], xlabel: str, ylabel: str) -> Plot:
    """Plots each name's values against their positions 0, 1, 2, ..."""
    figure, axes = new_figure(6, 3.4)
    for (name, numbers), color in zip(values.items(), itertools.cycle(COLORS), strict=False):
        axes.plot(numbers, ".-", color=color, label=visible(name), markersize=4)
    axes.set(xlabel=visible(xlabel), ylabel=ylabel)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return to_plot(figure)
