"""Configs: defaults, arguments, checks, and the keys that bind a resumed run.

Arguments follow the colon of `--config file.py:key=value`. Checks raise one-line errors.

A config file is a short program:

    from cdl_jax import config as base

    def get_config(text=""):
        choices = base.arguments(text, learner="l2p", distill="kd")
        config = base.default("cdl", data="cifar100", **choices)
        config.data.num_tasks = 10
        return config
"""

import functools
import inspect
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from cdl_jax import options as declarations
from cdl_jax import plugins, schema
from cdl_jax.errors import UserError
from cdl_jax.options import Option

# Options of every run.
OPTIONS = {
    "seed": Option(0, "seed of initial weights, batch order and augmentation"),
    # One program, vectorized over the trained variables, around one frozen backbone. On a CPU short runs become faster,
    # steps do not, and steps with convolutions become slower: docs/maintainers/benchmarks.md.
    "seeds": Option(
        (),
        "several seeds in one program instead of `seed`, such as (0, 1, 2); all have the same images, and the same "
        "class order unless data.class_order_seed=-1",
        item_type=int,
    ),
    "train": {
        "epochs": Option(20, "epochs of each task", minimum=1),
        "batch_size": Option(64, "images of a training batch, over all devices", minimum=1),
        "last_batch": Option(
            "drop",
            "whether an incomplete last batch of an epoch is dropped, or trained in its own size",
            choices=("drop", "keep"),
        ),
        # Log lines, evaluations and checkpoints stay at their steps, the steps left before one of these run one by one,
        # and a signal takes effect after at most this many steps. On a CPU ViTs keep every bit, and convolutions round
        # differently. docs/maintainers/benchmarks.md has times.
        "steps_per_call": Option(
            1,
            "steps in one compiled call, for networks whose step is shorter than its launch",
            minimum=1,
            resumable=True,
        ),
        # The best evaluation is that of the headline of the method.
        "early_stopping": {
            "patience": Option(
                0,
                "epochs without a better evaluation (eval.every_epochs) after which a task ends with the weights of "
                "its best evaluation; 0: a task lasts until its last epoch",
            ),
            "margin": Option(0.0, "percent by which an evaluation exceeds the best one to count as better"),
        },
        # In both cases nonfinite.json records the step, and no checkpoint contains its result. The reaction changes
        # nothing before that step, so it may change on resume.
        "on_nonfinite": Option(
            "stop",
            "reaction to a NaN or an infinity in a step's loss, gradients or weights: stop, or skip the step as if its "
            "batch did not exist",
            choices=("stop", "skip"),
            resumable=True,
        ),
    },
    "eval": {
        "batch_size": Option(256, "images of an evaluation batch, over all devices", minimum=1, resumable=True),
        "forward_transfer": Option(True, "evaluate each task also before it is trained"),
        "every_epochs": Option(
            0, "epochs between evaluations within a task; the best is in results.json; 0: only after a task"
        ),
    },
    "checkpoint": {
        "every_steps": Option(
            500,
            "steps between checkpoints within a task; one more follows each task; 0: only after tasks",
            resumable=True,
        ),
        "keep": Option(
            2,
            "number of stored checkpoints within a task; if the newest is corrupt, the run resumes from the one before",
            minimum=1,
            resumable=True,
        ),
        # Evaluation (--mode=eval --task) and analysis of an earlier task need its checkpoint. So does a run whose
        # teacher is a network of this run as it was after each task.
        "keep_tasks": Option(0, "number of stored checkpoints after a task, the newest ones; 0: all", resumable=True),
    },
    "log": {
        "every_steps": Option(50, "steps between two lines of metrics.jsonl", minimum=1, resumable=True),
        "to": Option(
            ("tensorboard",),
            "copies of the measurements in other tools: tensorboard, csv, wandb, mlflow",
            choices=("tensorboard", "csv", "wandb", "mlflow"),
            resumable=True,
        ),
        "report": Option(True, "write report.html, which takes seconds", resumable=True),
    },
    "debug_nans": Option(
        False,
        "stop with a traceback at the operation that produced the first NaN; steps become several times slower",
        resumable=True,
    ),
    "devices": Option(0, "number of local devices that share a batch; 0: all", resumable=True),
    "peer_devices": Option(
        1,
        "number of devices over which networks that learn together are distributed (dml, okddip)",
        minimum=1,
        resumable=True,
    ),
    "fsdp_devices": Option(
        1,
        "number of devices over which each large weight is sharded, for a teacher that exceeds the memory of one "
        "device; batches are still split over all devices",
        minimum=1,
        resumable=True,
    ),
    # Trained weights, the optimizer, losses, norms and softmax stay in float32. The dtype of the computation is the
    # network's own `dtype`.
    "frozen_dtype": Option(
        "auto",
        "dtype of the kernels of networks that are frozen for all of the run, on devices and in checkpoints; bfloat16 "
        "halves their bytes; auto: bfloat16 if all networks are ViTs that compute in it",
        choices=("auto", "float32", "bfloat16"),
    ),
    "compilation_cache": Option(
        "~/.cache/cdl_jax/compiled", "folder of compiled programs, for all runs; empty: no cache", resumable=True
    ),
    "device_data_limit_mb": Option(
        4096, "size in MiB up to which arrays of images are copied to the device; larger ones are streamed"
    ),
}


class Config(ml_collections.ConfigDict):
    """A ConfigDict that converts a value to the type of its option.

    Values of Python, NumPy and pathlib are accepted.
    """

    def __init__(self, tree=(), type_safe=True, prefix=""):
        super().__init__(type_safe=type_safe)
        object.__setattr__(self, "_prefix", prefix)
        for key, value in dict(tree).items():
            self[key] = value

    def __setitem__(self, key, value):
        path = f"{self._prefix}{key}"
        if isinstance(value, dict | ml_collections.ConfigDict):
            if self.is_type_safe and key in self and not isinstance(self[key], ml_collections.ConfigDict):
                raise UserError(f"config.{path} is one value, not a section: set it to a value such as {self[key]!r}")
            value = Config(value, self.is_type_safe, path + ".")
        elif not isinstance(value, ml_collections.FieldReference):
            value = _convert(path, value, self[key]) if key in self and self.is_type_safe else _to_python(value)
        super().__setitem__(key, value)


def _convert(path, value, old):
    """Converts a value to the type of the option's `old` value.

    Raises:
      UserError: the value is of another kind.
    """
    new, kind = _to_python(value), type(old)
    if isinstance(old, ml_collections.ConfigDict):
        raise _section_error(path, value, old)
    if path == "data.class_order" and isinstance(new, tuple) and new and {*map(type, new)} in ({int}, {str}):
        return ("," if type(new[0]) is int else "\n").join(map(str, new))
    if path == "dkt.topology" and isinstance(new, tuple):
        return repr(new)
    if kind is tuple and isinstance(value, list | np.ndarray):
        return new if isinstance(new, tuple) else (new,)
    if kind is int and type(new) is float and new.is_integer():
        return int(new)
    if kind is float and type(new) is int:
        return float(new)
    if _has_type(new, old):
        return new
    raise UserError(f"config.{path}={value!r} must be of type {kind.__name__}, as {old!r} is")


def _has_type(value, default):
    """Returns whether a value has the type of an option's default.

    A number without a point may be a float.
    """
    kinds = {float: (float, int), tuple: (tuple, list), list: (tuple, list)}.get(type(default), type(default))
    if isinstance(value, tuple | list) and not all(
        isinstance(item, int | float | str | tuple | list) for item in value
    ):
        return False
    return default is None or isinstance(value, kinds) and (type(value) is bool) == (type(default) is bool)


def _section_error(path, value, section):
    option = next(iter(flatten(section, f"{path}.")), f"{path}.NAME")
    return UserError(
        f"config.{path}={value!r} replaces a section of options by one value: set its options, such as config.{option}"
    )


def _to_python(value):
    """Converts a value of NumPy, pathlib or Python to numbers, text and tuples.

    NumPy scalars become numbers, NumPy arrays and lists become tuples, and paths become text.
    """
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return tuple(map(_to_python, value)) if isinstance(value, list | tuple) else value


def arguments(text: str | None, **defaults: Any) -> dict[str, Any]:
    """Parses the arguments behind the colon of `--config file.py:key=value,key=value`.

    Args:
      text: the part behind the colon; None or empty: the defaults.
      **defaults: the known arguments with their default values, which determine the types.

    Returns:
      The value of each argument.

    Raises:
      UserError: an argument is unknown, with a suggestion, or its value is of the wrong type.

    >>> arguments("distill=dkd,seed=3", distill="kd", seed=0, reference=False)
    {'distill': 'dkd', 'seed': 3, 'reference': False}
    """
    values = dict(defaults)
    for part in filter(None, (text or "").split(",")):
        key, separator, value = part.partition("=")
        if not separator and key in defaults:
            raise UserError(f"config argument {key!r} has no value: write {key}=VALUE, such as {key}={defaults[key]}")
        if not separator or key not in defaults:
            source = f"choose a data source by --config.data.name={value or 'NAME'}; " if key == "data" else ""
            raise UserError(f"config argument {part!r} is unknown: {source}{plugins.did_you_mean(key, defaults)}")
        kind = type(defaults[key])
        try:
            values[key] = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError):
            raise UserError(f"config argument {key}={value!r} is not of type {kind.__name__}") from None
    return values


def default(method: str, *, data: str, **choices: str) -> ml_collections.ConfigDict:
    """Returns a config with all sections and their default values.

    Args:
      method: a plug-in of `cdl_jax.methods`, or a dotted path.
      data: a plug-in of `cdl_jax.data.sources`, or a dotted path.
      **choices: arguments of the method's `defaults`, such as learner, distill, teacher and student.

    Raises:
      UserError: there is no module of such a name, or the method has no such choice.

    >>> config = default("cdl", data="cifar100", learner="coda")
    >>> config.learner.name, config.data.name, config.train.epochs
    ('coda', 'cifar100', 20)
    """
    return Config(copy_with_tuples(declarations.defaults(_declare(method, data, **choices))))


def _declare(method, data, **choices):
    """Returns the declarations of all options, as nested dicts.

    The arguments are those of `default`.
    """
    source, module = plugins.load_plugin("data.sources", data), plugins.load_plugin("methods", method)
    known = inspect.signature(module.defaults).parameters
    for name in choices:
        if name not in known:
            raise UserError(f"method {method!r} has no choice {name!r}: {plugins.did_you_mean(name, known)}")
    common = _common_options()
    names = {"method": Option(method, "how the networks are trained: a name of --list, or a dotted path")}
    source_name = Option(data, "the data source: a name of --list, or a dotted path")
    sections = {"data": {**common["data"], "name": source_name, **source.OPTIONS}}
    own = module.defaults(**choices)
    if "." in method:
        _check_own_sections(own, plugins.describe_function(module.defaults))
    return {**common, **names, **sections, **own}


def _check_own_sections(own, what):
    """Checks that the `defaults` of a user's method return sections of options.

    Raises:
      UserError: they return something else, or the default of an option is not permitted.
    """
    sections = own.values() if isinstance(own, Mapping) else [own]
    if wrong := [value for value in sections if not isinstance(value, Mapping)]:
        where = f" in {next(key for key in own if own[key] is wrong[0])!r}" if isinstance(own, Mapping) else ""
        raise UserError(
            f"{what} must return {{section: {{option: default}}}}, but returns {plugins.describe_type(wrong[0])}{where}"
        )
    plugins.check_defaults(own, what)


def _common_options():
    """Returns the declarations of the options of every config."""
    from cdl_jax import optim
    from cdl_jax.data import stream
    from cdl_jax.data.transforms import augment

    return {**OPTIONS, "data": stream.OPTIONS, "augment": augment.OPTIONS, "optim": optim.OPTIONS}


def declared(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Returns the declarations of a config's options, as nested dicts.

    They are those of its method, data source, learner, scheme and network families.

    Args:
      config: a ConfigDict with the keys `method` and `data.name`.

    Raises:
      UserError: there is no module of such a name, or a choice does not fit the others.
    """
    return _declared(config, flatten(config))


def check_keys(config: ml_collections.ConfigDict) -> None:
    """Checks that a config has the keys of its plug-ins.

    These are its method, data source, learner, scheme and networks.

    Raises:
      UserError: a key is unknown, with a suggestion, an option is missing, or a choice does not fit the others.
    """
    flat = flatten(config)
    for key in ("method", "data.name"):
        if key in flat and not isinstance(flat[key], str):
            raise UserError(f"config.{key}={flat[key]!r} must be of type str, the name of a plug-in")
        if key not in flat:
            raise UserError(f"config.{key} is missing: begin the config with cdl_jax.config.default(...)")
    rebuilt = declarations.defaults(_declared(config, flat))
    known = flatten(rebuilt)
    everywhere = flatten(_common_options())
    choices = {"data": "data.name"} | {key.split(".")[0]: key for key in flat if key.endswith((".family", ".name"))}
    choices.pop("optim", None)
    user_networks = tuple(
        f"{section}." for section, key in choices.items() if key.endswith("family") and "." in str(flat[key])
    )
    _check_structure(config, rebuilt, user_networks)
    for key in sorted(known.keys() ^ flat.keys(), key=lambda key: (key in flat, key)):
        section = key.split(".")[0]
        choice = choices.get(section, "method")
        if key.startswith(user_networks):
            continue
        if key in everywhere:
            raise UserError(
                f"config.{key} is missing, an option of config.{choice}={flat[choice]!r} and of every config: begin "
                "the config with cdl_jax.config.default(...), and delete none of its keys"
            )
        if key in known and choice == "method":
            raise UserError(
                f"config.{key} is missing, an option of config.method={flat['method']!r}: write a config file with "
                f"cdl_jax.config.default({flat['method']!r}, data={flat['data.name']!r})"
            )
        if key in known:
            raise UserError(
                f"config.{key} is missing, an option of config.{choice}={flat[choice]!r}: the config has the options "
                "of another; choose it in the config file or behind its colon (file.py:learner=coda), which adds its "
                "options"
            )
        owner = f" of config.{choice}={flat[choice]!r}" if section in choices else ""
        raise UserError(f"unknown key config.{key}{owner}: {plugins.did_you_mean(key, known)}")
    _check_empty_sections(config, rebuilt, user_networks)
    for key, default_value in known.items():
        if key in flat and not _has_type(flat[key], default_value):
            value, example = (tuple(x) if isinstance(x, list) else x for x in (flat[key], default_value))
            raise UserError(f"config.{key}={value!r} must be of type {type(example).__name__}, such as {example!r}")


def _check_structure(config, rebuilt, exempt, prefix=""):
    """Raises UserError where a value stands for a section, or a section for a value."""
    for key, value in rebuilt.items():
        path = f"{prefix}{key}"
        if key not in config or f"{path}.".startswith(exempt):
            continue
        is_section = hasattr(config[key], "items")
        if hasattr(value, "items") and not is_section:
            raise _section_error(path, config[key], value)
        if is_section and not hasattr(value, "items"):
            raise UserError(f"config.{path} is one value, not a section: set it to a value such as {value!r}")
        if is_section:
            _check_structure(config[key], value, exempt, f"{path}.")


def _check_empty_sections(config, rebuilt, exempt, prefix=""):
    """Raises UserError for an unknown section.

    An empty section has no keys, so the comparison of keys does not find it.
    """
    for key, value in config.items():
        path = f"{prefix}{key}"
        if not hasattr(value, "items") or f"{path}.".startswith(exempt):
            continue
        if key not in rebuilt:
            hint = plugins.did_you_mean(path, [*_sections(rebuilt, prefix), *flatten(rebuilt, prefix)])
            raise UserError(f"unknown key config.{path}: {hint}")
        _check_empty_sections(value, rebuilt[key], exempt, f"{path}.")


def _sections(config, prefix=""):
    """Returns the names of all sections, such as "train" and "train.early_stopping"."""
    own = {f"{prefix}{key}": value for key, value in config.items() if hasattr(value, "items")}
    return [*own, *(name for key, value in own.items() for name in _sections(value, f"{key}."))]


def _declared(config, flat):
    """Returns the same as `declared`, from a config and its flat form."""
    source, method = config.data.name, plugins.load_plugin("methods", config.method)
    parts, choices, networks, user_options = inspect.signature(method.defaults).parameters, {}, {}, {}
    for name in parts:
        section = "student" if name == "network" and "network.family" not in flat else name
        if isinstance(choice := flat.get(f"{section}.name"), str):
            choices[name] = choice
        elif isinstance(family := flat.get(f"{section}.family"), str):
            module = plugins.load_plugin("models", family)
            if "." in family:
                user_options[section] = module.OPTIONS
            elif module.SIZES:
                networks[name] = (section, family, next(iter(module.SIZES)))
    rebuild = functools.partial(_declare, config.method, source, **choices)
    try:
        return {**rebuild(**{name: size for name, (_, _, size) in networks.items()}), **user_options}
    except plugins.UnknownPluginError:
        raise
    except UserError:
        culprits = [name for name, (_, _, size) in networks.items() if _refuses(rebuild, **{name: size})]
        if not networks:
            raise
    name = (culprits or list(networks))[0]
    section, family, _ = networks[name]
    learner = f" with config.learner.name={choices['learner']!r}" if "learner" in choices else ""
    raise UserError(
        f"config.{section}.family={family!r} does not fit config.method={config.method!r}{learner}: name another "
        f"network in the config file or behind its colon (file.py:{name}=...)"
    )


def _refuses(call, **options):
    try:
        call(**options)
    except UserError:
        return True
    return False


def with_source(config: ml_collections.ConfigDict, name: str) -> ml_collections.ConfigDict:
    """Returns a copy of a config with another data source.

    The options of the new source have their default values.

    Args:
      config: a ConfigDict.
      name: a plug-in of `cdl_jax.data.sources`, or a dotted path.
    """
    from cdl_jax.data import stream

    common = {key: value for key, value in config.data.items() if key in stream.OPTIONS}
    changed = Config(config)
    del changed["data"]
    changed.data = {**common, **declarations.defaults(plugins.load_plugin("data.sources", name).OPTIONS), "name": name}
    return changed


def with_defaults(stored: dict) -> dict:
    """Returns a stored config completed by the defaults of later options.

    The earlier version that stored the config did not have these options.

    Args:
      stored: the config of a run as nested dicts.
    """

    def merge(defaults, values):
        nested = {key: merge(defaults.get(key, {}), v) for key, v in values.items() if isinstance(v, dict)}
        return {**defaults, **values, **nested}

    complete = merge(declarations.defaults(OPTIONS), stored)
    try:
        known = declared(ml_collections.ConfigDict(copy_with_tuples(complete)))
        return merge(copy_with_tuples(declarations.defaults(known)), complete)
    except (UserError, AttributeError, KeyError):
        return complete  # not a config of this version; `check_keys` reports the reason


def copy_with_tuples(tree: Any) -> Any:
    """Copies nested dicts, and converts lists to tuples.

    A ConfigDict treats tuples as values.

    >>> copy_with_tuples({"a": {"b": [1, 2]}})
    {'a': {'b': (1, 2)}}
    """
    if isinstance(tree, dict):
        return {key: copy_with_tuples(value) for key, value in tree.items()}
    return tuple(tree) if isinstance(tree, list) else tree


def check(config: ml_collections.ConfigDict) -> None:
    """Checks the keys of a config, and each value by the declaration of its option.

    Methods, schemes, learners and networks check the options that do not fit together.

    Raises:
      UserError: a key is unknown, a value is not permitted, or options of every run do not fit together.
    """
    check_keys(config)
    declarations.check(declared(config), config)
    if config.train.steps_per_call > 1 and config.fsdp_devices > 1:
        raise UserError(
            "config.train.steps_per_call above 1 cannot be combined with config.fsdp_devices: sharded networks are "
            "large, and their steps do not become faster; leave one of them at 1"
        )
    if len(set(config.seeds)) < len(config.seeds):
        raise UserError(f"config.seeds={tuple(config.seeds)} must be different integers")
    if config.train.early_stopping.patience and (not config.eval.every_epochs or config.seeds):
        raise UserError(
            "config.train.early_stopping needs config.eval.every_epochs and a single seed: run the seeds one by one"
        )


def seeds_of(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    """Returns the seeds of a run: `config.seeds`, or `config.seed` alone."""
    return tuple(config.seeds) or (config.seed,)


def is_resumable(key: str) -> bool:
    """Returns whether a run may be resumed with another value of a key.

    Such a key changes neither weights nor metrics.

    >>> is_resumable("devices"), is_resumable("seed")
    (True, False)
    """
    return key in _resumable_keys()


@functools.cache
def _resumable_keys():
    return frozenset(key for key, option in declarations.rows(_options_of_any_method()) if option.resumable)


def _options_of_any_method():
    """Returns the declarations of options that every run and every stream has."""
    from cdl_jax.data import stream

    return {**OPTIONS, "data": stream.OPTIONS}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens a config or nested dicts to `{"section.key": value}`.

    Tuples become lists, as in JSON.

    >>> flatten({"train": {"epochs": 20}, "seeds": (0, 1)})
    {'train.epochs': 20, 'seeds': [0, 1]}
    """
    flat = {}
    for key, value in config.items():
        if hasattr(value, "items"):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = list(value) if isinstance(value, tuple | list) else value
    return flat


def differences(old: dict, new: dict) -> list[str]:
    """Returns `key: old -> new` for each value that differs and affects the results.

    Args:
      old: the flat config of a run.
      new: another flat config.

    >>> differences({"seed": 0, "devices": 0}, {"seed": 1, "devices": 4})
    ['seed: 0 -> 1']
    """
    return [f"{key}: {before!r} -> {after!r}" for key, (before, after) in changes(old, new).items()]


def changes(old: dict, new: dict) -> dict[str, tuple[Any, Any]]:
    """Returns (old, new) of each differing option that affects the results.

    Args:
      old: the flat config of a run.
      new: another flat config.

    >>> changes({"seed": 0, "devices": 0}, {"seed": 1, "devices": 4})
    {'seed': (0, 1)}
    """
    # With batchwise prompt selection, predictions depend on the size of the test batches.
    binding = ("eval.batch_size",) if old.get("learner.batchwise") else ()
    keys = sorted(k for k in {*old, *new} if not is_resumable(k) or k in binding)
    old = {**flatten(declarations.defaults(_options_of_any_method())), **old}  # what an earlier version did not have
    return {
        k: (old.get(k, "absent"), new.get(k, "absent"))
        for k in keys
        if old.get(k) != new.get(k) and not (is_automatic(k, old.get(k)) or is_automatic(k, new.get(k)))
    }


def is_automatic(key: str, value: Any) -> bool:
    """Returns whether a value, such as "auto", is chosen by the device.

    Such a value equals any other.

    >>> is_automatic("student.dtype", "auto"), is_automatic("student.dtype", "float32"), is_automatic("name", "auto")
    (True, False, False)
    """
    return value == "auto" and key.rpartition(".")[2] in ("dtype", "frozen_dtype", "attention")


def read(workdir: Path, as_stored: bool = False) -> dict | None:
    """Returns the content of a run's config.json, or None if there is no such file.

    Args:
      workdir: folder of the run.
      as_stored: whether the options keep the names of an earlier version, as the fingerprint of the run needs them.

    Raises:
      UserError: the file is damaged, or a later version of this program wrote it.
    """
    path = workdir / "config.json"
    try:
        if not path.exists():
            return None
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
            raise ValueError("no config in it")
        return content if as_stored else schema.upgrade_config(content, path)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): restore it or choose another --workdir") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): restore it or choose another --workdir") from None
