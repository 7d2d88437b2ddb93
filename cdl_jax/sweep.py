"""Runs that differ in one option: what its values come to, a line for all that is else alike."""

import json

from cdl_jax.compare import Group, labels, spread
from cdl_jax.errors import UserError


def lines(groups: list[Group], option: str) -> dict[str, dict]:
    """{label: {value of the option: accuracies in percent, one for each finished seed}}, values in ascending order.

    Lines are called by the settings in which they differ. Whose run a finished teacher comes from is not among them:
    where streams differ, their teachers do.

    Raises:
      UserError: a run's config has no such option, or it is the same in all of them.
    """
    found = {}
    for group in groups:
        if option not in group.config:
            folder = next(iter(group.runs.values())).folder
            raise UserError(f"--sweep {option}: the config of {folder} has no such option: name another, or other runs")
        rest = {key: value for key, value in group.config.items() if key not in (option, "cdl.teachers")}
        _, values = found.setdefault(json.dumps(rest, sort_keys=True), (Group(rest, {}), {}))
        value = group.config[option]
        value = value if isinstance(value, int | float | str) else json.dumps(value)
        values.setdefault(value, []).extend(group.values("headline", "last", finished=True).values())
    if len({value for _, values in found.values() for value in values}) < 2:
        raise UserError(f"--sweep {option}: it has one value in all runs: name runs in which it differs")
    names = labels([rest for rest, _ in found.values()])
    return {name: dict(sorted(values.items())) for name, (_, values) in zip(names, found.values(), strict=True)}


def table(found: dict[str, dict], option: str) -> list[list[str]]:
    """Rows of a table, the head first: a line each, with mean and standard deviation for every value."""
    values = sorted({value for line in found.values() for value in line})
    head = [option, *map(str, values)]
    return [head, *([name, *(spread(line.get(value, ())) for value in values)] for name, line in found.items())]
