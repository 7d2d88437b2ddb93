"""Tabulates runs that differ in one option.

A line has all runs with the same other settings.
"""

import json
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cdl_jax.errors import UserError
from cdl_jax.report.groups import Group, Seeds, check_one_metric, identity, label_settings, parent_of
from cdl_jax.report.tables import format_mean_std
from cdl_jax.report.text import Rows

Line = dict[Any, dict[Seeds, float]]  # value of the option -> accuracy in percent of each finished seed

_CDL_TEACHERS = "cdl.teacher_runs"


def group_by_option(groups: Sequence[Group], option: str) -> dict[str, Line]:
    """Groups runs that differ in one option into lines.

    A line is labeled by the settings that differ between lines. The path of a teacher run is ignored, because runs with
    different class orders necessarily have different teachers. Only whether there is a teacher counts, and a teacher
    that is itself a run on the line counts as none.

    Args:
      groups: as `read_groups` returns them.
      option: config key, such as "distill.alpha".

    Returns:
      label -> value of the option -> accuracy in percent of each finished seed; values in ascending order, as text if
      any of them is text.

    Raises:
      UserError: a run's config lacks the option, the option has one value in all runs, no run is finished, runs have
        different metrics, or two runs on a line have the same value and seed.
    """
    check_one_metric(groups, f"sweep {option}")
    folders = _teacher_folders(groups, option)
    lines: dict[str, tuple[dict, Line]] = {}
    for group in groups:
        if option not in group.config:
            folder = next(iter(group.runs.values())).folder
            raise UserError(f"sweep {option}: nothing that runs are compared by has this name in {folder}")
        settings = identity(group, ignored=(option,))
        if parent := parent_of(group):  # its first tasks had the value of its parent
            settings["parent"] = parent
        if _CDL_TEACHERS in settings:
            line_folders = folders.get(_key_without(group.config, option, _CDL_TEACHERS), ())
            teachers = group.config[_CDL_TEACHERS]
            settings[_CDL_TEACHERS] = not all(Path(name).parts[-3:-1] in line_folders for name in teachers)
        _, line = lines.setdefault(json.dumps(settings, sort_keys=True), (settings, {}))
        _add_accuracies(line, group, option)
    values = {value for _, line in lines.values() for value in line}
    if len(values) < 2:
        raise UserError(f"sweep {option}: it has one value in all runs: name runs in which it differs")
    if not any(accuracies for _, line in lines.values() for accuracies in line.values()):
        raise UserError(f"sweep {option}: none of these runs is finished")
    has_text = any(isinstance(value, str) for value in values)
    labels = label_settings([settings for settings, _ in lines.values()])
    return {label: _ordered(line, has_text) for label, (_, line) in zip(labels, lines.values(), strict=True)}


def table(lines: Mapping[str, Line], option: str) -> Rows:
    """Returns a table with one row for each line.

    A cell has the mean and the standard deviation for a value of the option.

    >>> first, second = (0, 0, 0), (1, 1, 0)
    >>> table({"kd": {0.1: {first: 50.0, second: 52.0}, 0.5: {first: 60.0}}}, "distill.alpha")
    [['distill.alpha', '0.1', '0.5'], ['kd', '51.00 ± 1.41', '60.00']]
    """
    values = sorted({value for line in lines.values() for value in line})
    head = [option, *map(str, values)]
    rows = [
        [label, *(format_mean_std(line.get(value, {}).values()) for value in values)] for label, line in lines.items()
    ]
    return [head, *rows]


def best_value(lines: Mapping[str, Line], option: str, *, lower_is_better: bool = False) -> Any:
    """Returns the value of the option with the highest mean; of equal ones the first.

    Args:
      lines: of `group_by_option`.
      option: its name.
      lower_is_better: whether the lowest mean is the best, as of distances.

    Raises:
      UserError: runs differ in another option too, or their finished seeds differ.

    >>> first, second = (0, 0, 0), (1, 1, 0)
    >>> line = {0.01: {first: 50.0, second: 52.0}, 0.02: {first: 49.0, second: 54.0}}
    >>> best_value({"l2p": line}, "optim.learning_rate")
    0.02
    >>> best_value({"gan": {0.1: {first: 256.0}, 1.0: {first: 413.0}}}, "gan.vkd_weight", lower_is_better=True)
    0.1
    """
    if len(lines) > 1:
        raise UserError(f"best {option}: runs also differ in other settings ({', '.join(lines)}): name those of one")
    (line,) = lines.values()
    if len({frozenset(accuracies) for accuracies in line.values()}) > 1:
        raise UserError(f"best {option}: its values have finished runs of different seeds: complete them first")
    best = min if lower_is_better else max
    return best(line, key=lambda value: statistics.fmean(line[value].values()))


def _add_accuracies(line, group, option):
    """Adds the finished runs of a group to a line.

    Raises:
      UserError: the line has a run with the same value and seed.
    """
    value = group.config[option]
    value = value if type(value) in (int, float, str) else json.dumps(value)
    accuracies = line.setdefault(value, {})
    for seed, accuracy in group.values("headline", "last", finished=True).items():
        if seed in accuracies:
            raise UserError(
                f"sweep {option}: {group.runs[seed].folder} has the value {value} and the seed of another run, "
                "with another teacher: name those of one"
            )
        accuracies[seed] = accuracy


def _teacher_folders(groups, option):
    """Returns the (parent, name) folders of runs without a teacher, by config.

    The config is without the option and the teacher runs.
    """
    folders = {}
    for group in groups:
        if not group.config.get(_CDL_TEACHERS):
            key = _key_without(group.config, option, _CDL_TEACHERS)
            folders.setdefault(key, set()).update(run.folder.parts[-3:-1] for run in group.runs.values())
    return folders


def _key_without(config, *keys):
    """Returns a hashable form of a config without some keys."""
    return json.dumps({key: value for key, value in config.items() if key not in keys}, sort_keys=True)


def _ordered(line, has_text):
    """Returns a line with ascending values, as text if `has_text`."""
    values = sorted(line, key=str if has_text else None)
    return {str(value) if has_text else value: line[value] for value in values}
