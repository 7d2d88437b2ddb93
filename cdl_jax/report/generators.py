"""Compares generators: distances, other numbers of the last evaluation, samples."""

import io
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from cdl_jax.errors import UserError
from cdl_jax.methods.shared import gan_options
from cdl_jax.report import boxes, comparison_plots, generation_section
from cdl_jax.report.groups import Group, check_one_metric, label_settings, metric_of
from cdl_jax.report.tables import format_difference, format_mean_std
from cdl_jax.report.text import Plot, Rows

_NETWORK = "generator"
_SAMPLES = 3  # of each class and seed in a sheet
_MARGIN = 6  # white pixels around a panel
_HEADER = 22  # pixels above the panels of a setting
# Column -> extra metric; {network} is the measuring network.
_COLUMNS = {
    "kernel distance": "kid_{network}",
    "class accuracy": "class_accuracy",
    "variance within classes": "within_class_variance",
    "training images called real": "training_called_real",
    "test images called real": "test_called_real",
}


def table(groups: Sequence[Group]) -> Rows:
    """Returns a table of the numbers of the last evaluation.

    A number has the mean and the standard deviation over finished seeds. The difference of the distance to the first
    group is paired by seeds: mean and standard error. "best" is the smallest distance of all evaluations of a run.

    Args:
      groups: as `read_groups` returns them.

    Raises:
      UserError: a group has no generator, or runs have different measuring networks.
    """
    check_one_metric(groups, "generation")
    rows, first, network = [], None, metric_of(groups).removeprefix("fd_")
    for name, group in zip(_names(groups), groups, strict=True):
        distances = group.values(_NETWORK, "last", finished=True)
        if not distances:
            folder = next(iter(group.runs.values())).folder
            raise UserError(f"{folder} has no finished generator: name runs of method=gan")
        first = distances if first is None else first
        paired = [distances[seed] - first[seed] for seed in distances if seed in first and distances is not first]
        runs = [run for run in group.runs.values() if run.finished]
        names = [name.format(network=network) for name in _COLUMNS.values()]
        columns = [
            [value for run in runs if (value := run.extra_metrics.get(f"{_NETWORK}/{name}")) is not None]
            for name in names
        ]
        best = group.values(_NETWORK, "best", finished=True).values()
        rows.append(
            [name, str(len(distances)), format_mean_std(distances.values()),
             format_difference(paired), format_mean_std(best), *map(format_mean_std, columns)]
        )  # fmt: skip
    return [["setting", "seeds", f"{metric_of(groups)} ↓", "Δ vs. first", "best", *_COLUMNS], *rows]


def dots(groups: Sequence[Group]) -> Plot:
    """Returns a plot of the distance of each finished seed.

    Args:
      groups: as `read_groups` returns them.
    """
    distances = [[*group.values(_NETWORK, "last", finished=True).values()] for group in groups]
    values = dict(zip(_names(groups), distances, strict=True))
    return comparison_plots.dot_plot(values, f"{metric_of(groups)} (smaller is better); bar: mean")


def samples_sheet(groups: Sequence[Group]) -> bytes:
    """Returns a PNG with the last samples of all finished runs.

    Each setting is a line under its name, with a panel for each seed. A panel has a column for each class. All panels
    have the same noise.

    Args:
      groups: as `read_groups` returns them.

    Raises:
      UserError: a run has no samples.
    """
    from PIL import Image

    lines = []
    for name, group in zip(_names(groups), groups, strict=True):
        panels = [_panel(run.folder, group.config) for _, run in sorted(group.runs.items()) if run.finished]
        lines.append((name, np.concatenate(panels, axis=1)))
    width = max(line.shape[1] for _, line in lines)
    parts = []
    for name, line in lines:
        parts.append(boxes.write(np.full((_HEADER, width, 3), 255, np.uint8), name))
        parts.append(np.pad(line, ((0, 0), (0, width - line.shape[1]), (0, 0)), constant_values=255))
    out = io.BytesIO()
    Image.fromarray(np.concatenate(parts)).save(out, "PNG", optimize=True)
    return out.getvalue()


def _panel(folder, config):
    """Returns the pixels of a run's last samples, with a margin.

    A column has the samples of one class.
    """
    from PIL import Image

    sheets = sorted((folder / generation_section.FOLDER).glob("step_*.png"))
    if not sheets:
        raise UserError(f"--samples: {folder} has no folder {generation_section.FOLDER}: leave the run out")
    side, columns = config["gan.image_size"], config["gan.sheet_columns"]
    with Image.open(sheets[-1], formats=("PNG",)) as opened:
        pixels = np.asarray(opened.convert("RGB"))
    samples = pixels.reshape(-1, side, columns, side, 3)[:, :, :_SAMPLES].transpose(2, 1, 0, 3, 4)
    panel = samples.reshape(samples.shape[0] * side, -1, 3)
    return np.pad(panel, ((0, _MARGIN), (0, _MARGIN), (0, 0)), constant_values=255)


def _names(groups):
    """Returns a distinct name of each group.

    It is the setting, and where settings are equal, also the options that differ.
    """
    for group in groups:
        if "gan.vkd" not in group.config:
            folder = next(iter(group.runs.values())).folder
            raise UserError(f"{folder} has no finished generator: name runs of method=gan")
    names = [_setting(group.config) for group in groups]
    for name in {name for name in names if names.count(name) > 1}:
        indices = [i for i, other in enumerate(names) if other == name]
        details = label_settings([groups[i].config for i in indices])
        for i, detail in zip(indices, details, strict=True):
            names[i] = f"{name}, {detail}"
    return names


def _setting(config):
    """Returns the name of a run's setting, from its flat config."""
    options = ConfigDict({key.removeprefix("gan."): value for key, value in config.items() if key.startswith("gan.")})
    return gan_options.row_name(options, config["teacher.weights"])
