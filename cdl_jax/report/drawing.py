"""Makes figures and writes them as SVG text with the plotted numbers.

Equal numbers give equal text.
"""

import csv
import io
import warnings

import numpy as np

from cdl_jax.report.text import Plot
from cdl_jax.runtime.console import one_line

# The palette of Okabe and Ito, which color-blind readers can distinguish too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
# Place of a legend beside the axes.
OUTSIDE = {"fontsize": 8, "loc": "upper left", "bbox_to_anchor": (1, 1)}
HIDDEN = "_hidden "  # begins the label of a line that the legend leaves out


def new_figure(width: float, height: float, panels: int = 1) -> tuple:
    """Returns a figure of a size in inches and its axes, one panel below the other."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(panels, 1, sharex=True, sharey=True)
    for ax in np.atleast_1d(axes):
        ax.spines[["top", "right"]].set_visible(False)
    return figure, axes


def visible(text: str) -> str:
    """Returns a name on one line that matplotlib shows.

    Legends of matplotlib hide names that begin with "_".
    """
    text = one_line(text)
    return f" {text}" if text.startswith("_") else text


def to_plot(figure) -> Plot:
    """Returns a figure as reproducible SVG text, without date and version."""
    import matplotlib
    from matplotlib.text import Text

    text = io.StringIO()
    for label in figure.findobj(Text):  # names may contain "$", which would begin a formula; the context handles ticks
        label.set_parse_math(False)
    settings = {"svg.hashsalt": "cdl_jax", "svg.fonttype": "path", "text.parse_math": False}
    with matplotlib.rc_context(settings), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph .* missing from")  # such a character becomes a box
        figure.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    return Plot(text.getvalue()[text.getvalue().index("<svg") :], _to_csv(figure))


def _to_csv(figure) -> str:
    """Returns the numbers of a figure's lines and images as CSV.

    A line without a label is a mark, such as one between tasks, and has no numbers. The columns of the coordinates have
    the names of the axes; of an axis with names at its ticks, the names are the values.
    """
    rows = []
    for axes in figure.axes:
        title = axes.get_title() or axes.get_title(loc="left")
        across, down = _tick_names(axes.xaxis), _tick_names(axes.yaxis)
        for line in axes.lines:
            label = line.get_label()
            if label.startswith("_") and not label.startswith(HIDDEN):
                continue
            name = label.removeprefix(HIDDEN).strip()
            points = zip(*line.get_data(orig=True), strict=True)
            rows += [(title, name, across.get(x, x), down.get(y, y), "") for x, y in points]
        for image in axes.images:
            values = np.ma.filled(image.get_array().astype(float), np.nan)
            rows += [(title, "", across.get(j, j), down.get(i, i), value) for (i, j), value in np.ndenumerate(values)
                     if np.isfinite(value)]  # fmt: skip
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    across = next(filter(None, (axes.get_xlabel() for axes in figure.axes)), "x")
    down = next(filter(None, (axes.get_ylabel() for axes in figure.axes)), "y")
    writer.writerow(["panel", "name", across, down, "value"])
    writer.writerows([[f"{cell:.6g}" if isinstance(cell, float) else cell for cell in row] for row in rows])
    return file.getvalue()


def _tick_names(axis) -> dict[int, str]:
    """Returns position -> name for an axis whose ticks have names.

    It is empty for an axis of numbers.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter

    # What `set_xticks` and `set_yticks` make of names; ticks at numbers have another formatter.
    if not (
        isinstance(axis.get_major_locator(), FixedLocator) and isinstance(axis.get_major_formatter(), FuncFormatter)
    ):
        return {}
    return {round(tick): label.get_text().strip()
            for tick, label in zip(axis.get_majorticklocs(), axis.get_majorticklabels(), strict=True)}  # fmt: skip
