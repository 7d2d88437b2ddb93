"""Runs that differ in one option: what its values come to, a line for all that is else alike."""

import json
from pathlib import Path

from cdl_jax.errors import UserError
from cdl_jax.report.groups import Group, labels
from cdl_jax.report.tables import spread

_CDL_TEACHERS = "cdl.teachers"
_TEACHERS = (_CDL_TEACHERS, "dkt.teachers", "teacher.weights")


def group_by_option(groups: list[Group], option: str) -> dict[str, dict]:
    """{label: {value of the option: accuracies in percent, one for each finished seed}}, values in ascending order.

    Lines are called by the settings in which they differ. Which finished run or file teaches is not among them, for
    where streams differ their teachers do; whether one does is, but where the teacher is that of a run on the line.

    Raises:
      UserError: a run's config has no such option, it is the same in all of them, none is finished, or two have one
        value and seed.
    """
    found, beside = {}, {}
    for group in groups:
        if not group.config.get(_CDL_TEACHERS):
            places = {run.folder.parts[-3:-1] for run in group.runs.values()}
            beside.setdefault(_but(group.config, option, _CDL_TEACHERS), set()).update(places)
    for group in groups:
        if option not in group.config:
            folder = next(iter(group.runs.values())).folder
            raise UserError(f"sweep {option}: nothing that runs are compared by has this name in {folder}")
        rest = {key: value for key, value in group.config.items() if key != option}
        rest |= {key: bool(rest[key]) for key in _TEACHERS if key in rest}
        if _CDL_TEACHERS in rest:
            known = beside.get(_but(group.config, option, _CDL_TEACHERS), ())
            rest[_CDL_TEACHERS] = not all(Path(name).parts[-3:-1] in known for name in group.config[_CDL_TEACHERS])
        _, values = found.setdefault(json.dumps(rest, sort_keys=True), (Group(rest, {}), {}))
        value = group.config[option]
        value = value if type(value) in (int, float, str) else json.dumps(value)
        seeds = values.setdefault(value, {})
        for seed, accuracy in group.values("headline", "last", finished=True).items():
            if seed in seeds:
                raise UserError(
                    f"sweep {option}: {group.runs[seed].folder} has the value {value} and the seed of another run, "
                    "with another teacher: name those of one"
                )
            seeds[seed] = accuracy
    values = {value for _, line in found.values() for value in line}
    if len(values) < 2:
        raise UserError(f"sweep {option}: it has one value in all runs: name runs in which it differs")
    if not any(seeds for _, line in found.values() for seeds in line.values()):
        raise UserError(f"sweep {option}: none of these runs is finished")
    text = any(isinstance(value, str) for value in values)  # then numbers stand among words
    return {
        name: {str(v) if text else v: list(line[v].values()) for v in sorted(line, key=str if text else None)}
        for name, (_, line) in zip(_names([rest for rest, _ in found.values()]), found.values(), strict=True)
    }


def _but(config, *keys):
    return json.dumps({key: value for key, value in config.items() if key not in keys}, sort_keys=True)


def _names(lines):
    """`compare.labels`, in which teachers are told of where nothing else parts two lines."""
    untaught = [Group({k: v for k, v in line.config.items() if k not in _TEACHERS}, {}) for line in lines]
    names = labels(untaught)
    return names if len({*names}) == len(names) else labels(lines)


def table(found: dict[str, dict], option: str) -> list[list[str]]:
    """Rows of a table, the head first: a line each, with mean and standard deviation for every value."""
    values = sorted({value for line in found.values() for value in line})
    head = [option, *map(str, values)]
    return [head, *([name, *(spread(line.get(value, ())) for value in values)] for name, line in found.items())]
