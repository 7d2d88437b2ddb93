"""Pictures of a run as SVG text, the same for the same numbers."""

import io
import itertools
import warnings

import numpy as np

from cdl_jax.runtime.console import one_line

# Okabe and Ito's colours, told apart by colour-blind readers too.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


def accuracy_curves(matrices: dict[str, list]) -> str:
    """Mean (solid) and worst (dotted) accuracy over the tasks seen, after each task, of each network."""
    figure, axes = _new(6, 3.4)
    for (name, rows), colour in zip(matrices.items(), itertools.cycle(_COLOURS), strict=False):
        x = np.arange(1, len(rows) + 1)
        axes.plot(x, [np.mean(row) for row in rows], "o-", color=colour, label=_label(name), markersize=4)
        axes.plot(x, [np.min(row) for row in rows], ":", color=colour)
    axes.set(xlabel="tasks learnt", ylabel="accuracy, %", ylim=(0, 102))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    return _svg(figure)


def heat_map(rows, title: str, top: float = 100, unit: str = "%", digits: int = 0) -> str:
    """A matrix of 0 to `top`, rows of 1, 2, ... numbers, with the numbers in their cells."""
    size = len(rows)
    matrix = np.full((size, size), np.nan)
    for i, row in enumerate(rows):
        matrix[i, : i + 1] = row
    side = min(1.4 + 0.42 * size, 9)
    figure, axes = _new(side + 0.8, side)
    image = axes.imshow(matrix, vmin=0, vmax=top, cmap="cividis")
    if size <= 20:
        for i, row in enumerate(rows):
            for j, value in enumerate(row):
                colour = "w" if value < 0.55 * top else "k"
                axes.text(j, i, f"{value:.{digits}f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set(xlabel="task", ylabel="after learning task", title=_label(title))
    _whole_numbers(axes, size, size)
    figure.colorbar(image, ax=axes, shrink=0.8, label=unit)
    return _svg(figure)


def matrix_plot(rows, down: list[str], across: list[str], title: str) -> str:
    """A matrix of numbers around 0 to 1, or None, with the numbers in its cells and the names of rows and columns."""
    matrix = np.array(rows, float)
    figure, axes = _new(1.8 + 0.52 * len(across), 1.5 + 0.38 * len(down))
    axes.imshow(matrix, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for (i, j), value in np.ndenumerate(matrix):
        if np.isfinite(value):
            colour = "w" if value < 0.55 else "k"
            axes.text(j, i, f"{value:.2f}", ha="center", va="center", fontsize=7, color=colour)
    axes.set_xticks(range(len(across)), [*map(_label, across)], rotation=45, ha="right")
    axes.set_yticks(range(len(down)), [*map(_label, down)])
    axes.set(title=_label(title))
    return _svg(figure)


def kl_by_age(rows) -> str:
    """A matrix, rows of 1, 2, ... numbers, against the tasks learnt since column's task: each task and the mean."""
    figure, axes = _new(6, 3.4)
    ages = [np.array([row[task] for row in rows[task:]]) for task in range(len(rows))]
    for values in ages:
        axes.plot(np.arange(len(values)), values, ".-", color="0.75", linewidth=0.9)
    means = [np.mean([values[age] for values in ages if age < len(values)]) for age in range(len(rows))]
    axes.plot(np.arange(len(rows)), means, "o-", color=_COLOURS[0], label="mean over the tasks that old", markersize=4)
    axes.set(xlabel="tasks learnt since", ylabel="KL, nats")
    axes.set_ylim(bottom=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.legend(frameon=False)
    return _svg(figure)


def sweep(values, means, usual: float) -> str:
    """Mean accuracy against a swept number; the dotted line is at the value that is used otherwise."""
    figure, axes = _new(6, 3.4)
    axes.plot(values, means, "o-", color=_COLOURS[0], markersize=4)
    axes.axvline(usual, color="0.5", ls=":", lw=0.8)
    axes.set(xlabel="weight", ylabel="accuracy, %")
    return _svg(figure)


def sweep_plot(found: dict[str, dict], xlabel: str) -> str:
    """Accuracies against the values of an option: each line's mean, every seed as a dot, values that are no numbers
    side by side."""
    figure, axes = _new(6, 3.4)
    found = {
        name: {one_line(value) if isinstance(value, str) else value: own for value, own in line.items()}
        for name, line in found.items()
    }
    for (name, line), colour in zip(found.items(), itertools.cycle(_COLOURS), strict=False):
        line = {value: accuracies for value, accuracies in line.items() if accuracies}
        if not line:
            continue
        axes.plot(
            list(line), [np.mean(accuracies) for accuracies in line.values()], "-", color=colour, label=_label(name)
        )
        dots = [(value, accuracy) for value, accuracies in line.items() for accuracy in accuracies]
        axes.plot(*zip(*dots, strict=True), "o", color=colour, markersize=4, alpha=0.7)
    axes.set(xlabel=_label(xlabel), ylabel="accuracy, %; line: mean")
    axes.set_xticks(sorted({value for line in found.values() for value in line}))
    axes.grid(axis="y", color="0.9")
    axes.legend(frameon=False)
    return _svg(figure)


def dot_plot(values: dict[str, list[float]], xlabel: str) -> str:
    """For each name its values as dots on a line of its own, and their mean as a bar, the first on top."""
    figure, axes = _new(4.5 + 0.08 * max(map(len, values)), 0.9 + 0.3 * len(values))
    for place, found in enumerate(values.values()):
        axes.plot(found, [place] * len(found), "o", color=_COLOURS[0], markersize=4, alpha=0.7)
        axes.plot([np.mean(found)], [place], "|", color=_COLOURS[1], markersize=14, markeredgewidth=2)
    axes.set_yticks(range(len(values)), [*map(_label, values)])
    axes.set_ylim(len(values) - 0.5, -0.5)
    axes.set(xlabel=_label(xlabel))
    axes.grid(axis="x", color="0.9")
    return _svg(figure)


def accuracy_vs_traffic(found: dict[str, tuple[list[float], list[float]]]) -> str:
    """Accuracy against exchanged megabytes: for each name its runs' amounts and accuracies, with their means and the
    standard deviation of the latter; dotted lines mark names that exchange nothing."""
    from matplotlib.ticker import LogLocator, NullLocator

    figure, axes = _new(8, 4)
    styles = zip(itertools.product("os^Dv", _COLOURS), found.items(), strict=False)
    for (mark, colour), (name, (amounts, values)) in styles:
        if not any(amounts):
            axes.axhline(np.mean(values), color=colour, ls=":", label=_label(name))
            continue
        spread = np.std(values, ddof=1) if len(values) > 1 else None
        axes.errorbar(np.mean(amounts), np.mean(values), spread, fmt=mark, color=colour, label=_label(name), capsize=3)
    axes.set(xlabel="megabytes exchanged", ylabel="accuracy, %", xscale="log")
    axes.xaxis.set(
        major_locator=LogLocator(subs=(1, 2, 5)), minor_locator=NullLocator(), major_formatter=lambda x, _: f"{x:g}"
    )
    axes.grid(axis="y", color="0.9")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return _svg(figure)


def line_plot(values: dict[str, list[float]], xlabel: str, ylabel: str) -> str:
    """Each name's values against their positions, 0, 1, 2, ..."""
    figure, axes = _new(6, 3.4)
    for (name, found), colour in zip(values.items(), itertools.cycle(_COLOURS), strict=False):
        axes.plot(found, ".-", color=colour, label=_label(name), markersize=4)
    axes.set(xlabel=_label(xlabel), ylabel=ylabel)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False)
    return _svg(figure)


def losses(lines: list[dict]) -> str:
    """Every loss term of each phase against the steps of the run."""
    phases = list(dict.fromkeys(line["phase"] for line in lines if "loss" in line))
    figure, axes = _new(11, 2.6 * len(phases), len(phases))
    for phase, ax in zip(phases, np.atleast_1d(axes), strict=True):
        chosen = [line for line in lines if line.get("phase") == phase]
        known = {"step", "task", "phase", "epoch", "learning_rate"}
        terms = [name for name in dict.fromkeys(k for line in chosen for k in line) if name not in known]
        for term, colour in zip(sorted(terms, key=lambda t: t != "loss"), itertools.cycle(_COLOURS), strict=False):
            pieces = {}
            for line in chosen:
                pieces.setdefault(line["task"], []).append((line["step"], line.get(term, np.nan)))
            for i, piece in enumerate(pieces.values()):
                ax.plot(*zip(*piece, strict=True), color=colour, label=None if i else _label(term), linewidth=1.1)
        for task in sorted({line["task"] for line in chosen})[1:]:
            ax.axvline(min(line["step"] for line in chosen if line["task"] == task), color="0.5", ls=":", lw=0.8)
        ax.set(xlabel="step", ylabel="loss")
        ax.set_title(_label(phase), loc="left")
        ax.legend(frameon=False, fontsize=8, ncols=6, loc="lower right", bbox_to_anchor=(1, 1))
    return _svg(figure)


def selection(rows, title: str) -> str:
    """Share of each prompt (columns) among those that each task's (rows) test images chose."""
    counts = np.asarray(rows, float)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = _new(min(1.8 + 0.22 * counts.shape[1], 11), min(1.3 + 0.26 * counts.shape[0], 8))
    image = axes.imshow(shares, vmin=0, cmap="cividis", aspect="auto")
    axes.set(xlabel="prompt", ylabel="task", title=_label(title))
    _whole_numbers(axes, *counts.shape)
    figure.colorbar(image, ax=axes, label="share")
    return _svg(figure)


def scatter(points, labels, title: str) -> str:
    """Points `[n, 2]` in a plane whose axes mean nothing, each with the colour and, beyond seven, the mark of its
    label."""
    figure, axes = _new(6, 5)
    styles = itertools.product(".x+^", _COLOURS)
    for label, (mark, colour) in zip(np.unique(labels), itertools.cycle(styles), strict=False):
        chosen = np.asarray(labels) == label
        axes.plot(*np.asarray(points)[chosen].T, mark, color=colour, label=_label(label), markersize=4)
    axes.set(xticks=[], yticks=[], title=_label(title))
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1, 1))
    return _svg(figure)


def _whole_numbers(axes, rows, columns):
    axes.set_xticks(range(0, columns, max(1, columns // 10)))
    axes.set_yticks(range(0, rows, max(1, rows // 10)))


def _new(width, height, panels=1):
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(panels, 1, sharex=True)
    for ax in np.atleast_1d(axes):
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _label(text: str) -> str:
    """Returns a name that shows as it is: on one line, and in legends even with "_" in front."""
    text = one_line(text)
    return f" {text}" if text.startswith("_") else text


def _svg(figure) -> str:
    import matplotlib
    from matplotlib.text import Text

    text = io.StringIO()
    for shown in figure.findobj(Text):  # names may hold "$", which would begin a formula; ticks follow in the context
        shown.set_parse_math(False)
    settings = {"svg.hashsalt": "cdl_jax", "svg.fonttype": "path", "text.parse_math": False}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # a box stands for such a character
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return text.getvalue()[text.getvalue().index("<svg") :]
