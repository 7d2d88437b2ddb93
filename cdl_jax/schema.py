"""Upgrades stored files of earlier versions.

The module has their schema numbers, and the tables of former names.

config.json, results.json, analysis.json and the records of checkpoints have a key "schema". Files without this key have
schema 1. A reader calls `upgrade`, so all other code handles the names of the newest schema alone.
"""

from collections.abc import Callable, Mapping
from typing import Any

from cdl_jax.errors import UserError

SCHEMA = 2
_ABSENT = object()

# Kind of file -> path of a key in schema 1 -> its name in schema 2. "*" stands for any key or index.
RENAMED_KEYS: dict[str, dict[str, str]] = {
    "results": {
        "means": "mean_over_learners",
        "measures": "extra_metrics",
        "best.*.measures": "extra_metrics",
        "networks.*.before": "pretask_accuracy",
        "networks.*.at_start": "initial_accuracy",
        "networks.*.by_task": "per_task",
    },
    "analysis": {"alignment": "cka", "places": "tsne"},
    "record": {
        "lines": "num_log_lines",
        "watched": "stopping_history",
        "timed": "throughput",
        "seeds.*.before": "pretask_accuracy",
        "seeds.*.at_start": "initial_accuracy",
        "seeds.*.measures": "extra_metrics",
        "seeds.*.best.*.measures": "extra_metrics",
        "seeds.*.quality": "calibration",
    },
}

# Option of schema 1 -> its name in schema 2. Both may lie in any section.
RENAMED_OPTIONS: dict[str, str] = {
    "cdl.query": "cdl.teacher_query",
    "cdl.student_rate": "cdl.student_schedule",
    "cdl.teachers": "cdl.teacher_runs",
    "dkt.teachers": "dkt.teacher_runs",
    "learner.pull": "learner.key_loss",
    "learner.form": "learner.prompt_form",
    "learner.full_length": "learner.full_length_kv",
    "learner.inherit": "learner.init_from_previous_task",
    "data.validation": "data.validation_fraction",
    "workers": "data.num_workers",
    "resident_limit_mb": "device_data_limit_mb",
    "optim.undecayed": "optim.no_decay",
    "optim.final_rate": "optim.end_learning_rate",
    "eeil.soften": "eeil.softmax_over",
    "eeil.noise_is": "eeil.noise_unit",
    "eeil.finetune_from": "eeil.finetune_start_task",
    "eeil.finetune_rate": "eeil.finetune_learning_rate",
}
# Option of schema 1 -> its values there -> those of schema 2.
RENAMED_VALUES: dict[str, dict[str, str]] = {"cdl.query": {"own": "teacher"}}
# Option of schema 1 that no longer exists -> the value with which it had no effect; None: with any value.
REMOVED_OPTIONS: dict[str, Any] = {"cdl.same_batches": False, "cdl.kept_queries_mb": None}

# Option of earlier versions -> its name in this one, and its values there -> those of this one. Files of schema 2 have
# them too.
REPLACED_OPTIONS: dict[str, tuple[str, dict[Any, Any]]] = {
    "log.tensorboard": ("log.to", {True: ["tensorboard"], False: []})
}


def number(content: Mapping[str, Any]) -> int:
    """Returns the schema number of a stored file; 1 if it has none.

    >>> number({}), number({"schema": 2})
    (1, 2)
    """
    return content.get("schema", 1)


def upgrade(kind: str, content: Mapping[str, Any], path: object = "") -> dict[str, Any]:
    """Returns the content of a stored file with the names of the newest schema.

    >>> upgrade("analysis", {"tasks": 2, "places": {}})
    {'tasks': 2, 'tsne': {}, 'schema': 2}

    Args:
      kind: "results", "analysis" or "record"; see `upgrade_config` for configs.
      content: of the file; it stays as it is.
      path: of the file, for the message.

    Raises:
      UserError: a later version of this program wrote the file.
    """
    check(content, path)
    if number(content) == SCHEMA:
        return dict(content)
    upgraded = dict(content)
    for old, new in RENAMED_KEYS[kind].items():
        *parents, name = old.split(".")
        upgraded = _replace(upgraded, parents, lambda tree, name=name, new=new: _rename(tree, name, new))
    return {**upgraded, "schema": SCHEMA}


def upgrade_config(content: Mapping[str, Any], path: object = "") -> dict[str, Any]:
    """Returns the content of config.json with the options of the newest schema.

    A removed option stays if it had an effect, so that the config is refused.

    Args:
      content: of the file; it stays as it is.
      path: of the file, for the message.

    Raises:
      UserError: a later version of this program wrote the file.
    """
    check(content, path)
    options = {key: dict(tree) if isinstance(tree, Mapping) else tree for key, tree in content["config"].items()}
    for old, (new, values) in REPLACED_OPTIONS.items():
        if (value := _pop(options, old)) is not _ABSENT:
            _set(options, new, values[value])
    if number(content) == SCHEMA:
        return {**content, "config": options}
    for old, neutral in REMOVED_OPTIONS.items():
        found = _pop(options, old)
        if found is not _ABSENT and neutral is not None and found != neutral:
            _set(options, old, found)
    for old, new in RENAMED_OPTIONS.items():
        if (value := _pop(options, old)) is not _ABSENT:
            _set(options, new, RENAMED_VALUES.get(old, {}).get(value, value) if isinstance(value, str) else value)
    upgraded = {**content, "config": options, "schema": SCHEMA}
    if isinstance(digests := content.get("content"), Mapping):
        upgraded["content"] = {RENAMED_OPTIONS.get(key, key): value for key, value in digests.items()}
    return upgraded


def check(content: Mapping[str, Any], path: object = "") -> None:
    """Checks that this version can read a stored file.

    Raises:
      UserError: a later version of this program wrote the file.
    """
    if not isinstance(found := number(content), int) or not 1 <= found <= SCHEMA:
        raise UserError(f"{path}: schema {found!r} is of another version of cdl_jax, this one reads up to {SCHEMA}: "
                        "update cdl_jax, or choose another --workdir")  # fmt: skip


def _pop(options, key):
    """Removes an option and returns its value; `_ABSENT` if there is none.

    key: "section.name", or the name of an option without a section.
    """
    section, _, name = key.rpartition(".")
    tree = options.get(section) if section else options
    return tree.pop(name, _ABSENT) if isinstance(tree, dict) else _ABSENT


def _set(options, key, value):
    section, _, name = key.rpartition(".")
    (options.setdefault(section, {}) if section else options)[name] = value


def _rename(tree, old, new):
    """Returns a dict with one key renamed, in the same position."""
    return {new if key == old else key: value for key, value in tree.items()} if isinstance(tree, Mapping) else tree


def _replace(tree: Any, parents: list[str], change: Callable[[Any], Any]) -> Any:
    """Returns a tree in which the subtrees at a path are changed.

    A path that does not exist has no effect.
    """
    if not parents:
        return change(tree)
    first, *rest = parents
    if isinstance(tree, list):
        return [_replace(item, rest, change) for item in tree] if first == "*" else tree
    if not isinstance(tree, Mapping):
        return tree
    return {key: _replace(value, rest, change) if first in ("*", key) else value for key, value in tree.items()}
