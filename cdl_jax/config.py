"""Configs: defaults, arguments after the colon, checks with one-line errors, and the keys that bind a resumed run.

A config file is a short program:

    from cdl_jax import config as base

    def get_config(text=""):
        choices = base.arguments(text, learner="l2p", distill="kd")
        config = base.default("cdl", data="cifar100", **choices)
        config.data.num_tasks = 10
        return config
"""

import inspect
import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import ml_collections
import numpy as np

from cdl_jax import plugins, schema
from cdl_jax.errors import UserError

DEFAULTS = {
    "seed": 0,
    # Several seeds at once, such as (0, 1, 2), instead of `seed`: one program, vectorized over the trained variables,
    # around one frozen backbone. All seeds have the same images, and the same class order unless
    # data.class_order_seed=-1 gives each seed its own. On a CPU short runs become faster, steps do not, and steps with
    # convolutions become slower: docs/maintainers/benchmarks.md.
    "seeds": (),
    "train": {
        "epochs": 20,
        "batch_size": 64,
        "last_batch": "drop",  # an incomplete last batch of an epoch; "keep": it is trained in its own size
        # Number of steps in one program, for networks whose step is shorter than its launch:
        # docs/maintainers/benchmarks.md. Log lines, evaluations and checkpoints stay at their steps, the steps left
        # before one of these run one by one, and a signal takes effect after at most this many steps. On a CPU ViTs
        # keep every bit, and convolutions round differently.
        "steps_per_call": 1,
        # A task ends with the weights of its best evaluation (see eval.every_epochs), by the headline of the method,
        # after `patience` epochs that do not exceed this evaluation by more than `margin` percent. 0: a task always
        # lasts until its last epoch.
        "early_stopping": {"patience": 0, "margin": 0.0},
        # After a step with a NaN or an infinity in its loss, gradients or weights: "stop", or "skip" the step, as if
        # its batch did not exist. In both cases nonfinite.json records it, and no checkpoint contains its result.
        "on_nonfinite": "stop",
    },
    "eval": {
        "batch_size": 256,
        "forward_transfer": True,
        "every_epochs": 0,  # interval of evaluations within a task; the best is in results.json. 0: only after a task
    },
    "checkpoint": {
        "every_steps": 500,  # interval within a task; one more follows each task. 0: only after tasks
        "keep": 2,  # number of those within a task; if the newest is corrupt, the run resumes from the one before
        # Number of those after a task, the newest. 0: all. Evaluation (--mode=eval --task) and analysis of an earlier
        # task need its checkpoint. So does a run whose teacher is a network of this run as it was after each task.
        "keep_tasks": 0,
    },
    "log": {"every_steps": 50, "tensorboard": True, "report": True},  # report.html takes seconds to render
    # Stops with a traceback at the operation that produced the first NaN. Steps become several times slower.
    "debug_nans": False,
    "devices": 0,  # number of local devices that share a batch. 0: all
    "peer_devices": 1,  # number of devices over which networks that learn together are distributed (dml, okddip)
    # Number of devices over which each large weight is sharded, for a teacher that exceeds the memory of one device.
    # Batches are still split over all devices.
    "fsdp_devices": 1,
    # Dtype of the kernels of networks that are frozen for the whole run, on the devices and in checkpoints: "bfloat16"
    # halves their bytes. Trained weights, the optimizer, losses, norms and softmax stay in float32. The dtype of the
    # computation is the network's own `dtype`.
    "frozen_dtype": "float32",
    "workers": 0,  # processes that decode images from disk. 0: threads of this process
    "compilation_cache": "~/.cache/cdl_jax/compiled",  # folder of compiled programs, for all runs. "": no cache
    "resident_limit_mb": 4096,  # arrays of images up to this size are copied to the device; larger ones are streamed
}

# Keys that change neither weights nor metrics, so a run may be resumed with other values of them. The reaction to a
# non-finite step changes nothing before that step.
RESUMABLE_KEYS = (
    "checkpoint.",
    "log.",
    "devices",
    "peer_devices",
    "fsdp_devices",
    "workers",
    "data.path",
    "eval.batch_size",
    "compilation_cache",
    "debug_nans",
    "train.on_nonfinite",
    "train.steps_per_call",
)


_SIGNED_KEYS = ("distill.norm_epsilon", "data.class_order_seed", "dkt.kd_step")  # keys of numbers that may be negative
_SIZES = ("dim", "depth", "heads", "patch_size", "image_size")  # options of every network


class Config(ml_collections.ConfigDict):
    """A ConfigDict that accepts values of Python, NumPy and pathlib and converts them to the type of the option."""

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
    if path == "data.class_order" and isinstance(new, tuple) and new and all(type(item) is int for item in new):
        return ",".join(map(str, new))
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
    """Returns whether a value has the type of an option's default; a number without a point may be a float."""
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
    """Converts NumPy scalars and arrays to numbers and tuples, paths to text and lists to tuples."""
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
    from cdl_jax import optim
    from cdl_jax.data import stream
    from cdl_jax.data.transforms import augment

    source, module = plugins.load_plugin("data.sources", data), plugins.load_plugin("methods", method)
    known = inspect.signature(module.defaults).parameters
    for name in choices:
        if name not in known:
            raise UserError(f"method {method!r} has no choice {name!r}: {plugins.did_you_mean(name, known)}")
    sections = {
        **DEFAULTS,
        "method": method,
        "data": {**stream.OPTIONS, "name": data, **source.OPTIONS},
        "augment": augment.OPTIONS,
        "optim": optim.OPTIONS,
        **module.defaults(**choices),
    }
    return Config(copy_with_tuples(sections))


def check_keys(config: ml_collections.ConfigDict) -> None:
    """Checks that a config has the keys of its method, data source, learner, scheme and networks.

    Raises:
      UserError: a key is unknown, with a suggestion, an option is missing, or a choice does not fit the others.
    """
    from cdl_jax import optim
    from cdl_jax.data import stream
    from cdl_jax.data.transforms import augment

    flat = flatten(config)
    for key in ("method", "data.name"):
        if key in flat and not isinstance(flat[key], str):
            raise UserError(f"config.{key}={flat[key]!r} must be of type str, the name of a plug-in")
        if key not in flat:
            raise UserError(f"config.{key} is missing: begin the config with cdl_jax.config.default(...)")
    rebuilt = _rebuild(config, flat)
    known = flatten(rebuilt)
    everywhere = flatten({**DEFAULTS, "data": stream.OPTIONS, "augment": augment.OPTIONS, "optim": optim.OPTIONS})
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
    """Raises UserError where one value stands for a section, or a section for one value."""
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
    """Raises UserError for an unknown section, which has no keys that the comparison of keys finds if it is empty."""
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


def _rebuild(config, flat):
    """Returns the default config for the method, data source, learner, scheme and network families of a config."""
    source, method = config.data.name, plugins.load_plugin("methods", config.method)
    parts, choices, networks = inspect.signature(method.defaults).parameters, {}, {}
    for name in parts:
        section = "student" if name == "network" and "network.family" not in flat else name
        if isinstance(choice := flat.get(f"{section}.name"), str):
            choices[name] = choice
        elif isinstance(family := flat.get(f"{section}.family"), str):
            sizes = plugins.load_plugin("models", family).SIZES
            if sizes and "." not in family:
                networks[name] = (section, family, next(iter(sizes)))
    rebuild = partial(default, config.method, data=source, **choices)
    try:
        return rebuild(**{name: size for name, (_, _, size) in networks.items()})
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
    """Returns a copy of a config with another data source, whose options have their default values.

    Args:
      config: a ConfigDict.
      name: a plug-in of `cdl_jax.data.sources`, or a dotted path.
    """
    from cdl_jax.data import stream

    common = {key: value for key, value in config.data.items() if key in stream.OPTIONS}
    changed = Config(config)
    del changed["data"]
    changed.data = {**common, **plugins.load_plugin("data.sources", name).OPTIONS, "name": name}
    return changed


def with_defaults(stored: dict) -> dict:
    """Returns a stored config completed by the defaults of options that an earlier version did not have.

    Args:
      stored: the config of a run as nested dicts.
    """

    def merge(defaults, values):
        nested = {key: merge(defaults.get(key, {}), v) for key, v in values.items() if isinstance(v, dict)}
        return {**defaults, **values, **nested}

    complete = merge(DEFAULTS, stored)
    try:
        return merge(
            _rebuild(ml_collections.ConfigDict(copy_with_tuples(complete)), flatten(complete)).to_dict(), complete
        )
    except (UserError, AttributeError, KeyError):
        return complete  # not a config of this version; `check_keys` reports the reason


def copy_with_tuples(tree: Any) -> Any:
    """Copies nested dicts, and converts lists to tuples, which a ConfigDict treats as values.

    >>> copy_with_tuples({"a": {"b": [1, 2]}})
    {'a': {'b': (1, 2)}}
    """
    if isinstance(tree, dict):
        return {key: copy_with_tuples(value) for key, value in tree.items()}
    return tuple(tree) if isinstance(tree, list) else tree


def check(config: ml_collections.ConfigDict) -> None:
    """Checks the keys of a config and the values of its common sections. Methods and sources check their own options.

    Raises:
      UserError: a key is unknown or a value is out of range. The message names the key and the permitted values.
    """
    check_keys(config)
    positive = (
        "train.epochs",
        "train.batch_size",
        "train.steps_per_call",
        "eval.batch_size",
        "log.every_steps",
        "checkpoint.keep",
    )
    for key in (*positive, "peer_devices", "fsdp_devices"):
        if flatten(config)[key] < 1:
            raise UserError(f"config.{key}={flatten(config)[key]} must be at least 1")
    if config.train.last_batch not in ("drop", "keep"):
        raise UserError(f"config.train.last_batch={config.train.last_batch!r}: use 'drop' or 'keep'")
    if config.frozen_dtype not in ("float32", "bfloat16"):
        raise UserError(f"config.frozen_dtype={config.frozen_dtype!r}: use 'float32' or 'bfloat16'")
    if config.train.on_nonfinite not in ("stop", "skip"):
        raise UserError(f"config.train.on_nonfinite={config.train.on_nonfinite!r}: use 'stop' or 'skip'")
    if config.train.steps_per_call > 1 and config.fsdp_devices > 1:
        raise UserError(
            "config.train.steps_per_call above 1 cannot be combined with config.fsdp_devices: sharded networks are "
            "large, and their steps do not become faster; leave one of them at 1"
        )
    seeds = tuple(config.seeds)
    if len(set(seeds)) < len(seeds) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(f"config.seeds={seeds} must be different integers that are not negative")
    for key in ("eval.every_epochs", "checkpoint.every_steps", "checkpoint.keep_tasks", "devices", "workers", "seed"):
        if flatten(config)[key] < 0:
            raise UserError(f"config.{key}={flatten(config)[key]} must not be negative")
    stopping = config.train.early_stopping
    if stopping.patience < 0 or stopping.margin < 0:
        raise UserError(
            f"config.train.early_stopping: patience={stopping.patience}, margin={stopping.margin} must not be negative"
        )
    if stopping.patience and (not config.eval.every_epochs or seeds):
        raise UserError(
            "config.train.early_stopping needs config.eval.every_epochs and a single seed: run the seeds one by one"
        )
    for seed in (config.seed, *seeds):
        if seed >= 2**31:  # compiled steps have it as int32
            raise UserError(f"config: seed {seed} must be less than {2**31}")
    check_numbers(config)


def seeds_of(config: ml_collections.ConfigDict) -> tuple[int, ...]:
    """Returns the seeds of a run: `config.seeds`, or `config.seed` alone."""
    return tuple(config.seeds) or (config.seed,)


def check_numbers(config: ml_collections.ConfigDict) -> None:
    """Checks the numbers of all sections: NaN, infinite, huge and, with few exceptions, negative ones are invalid.

    Raises:
      UserError: a number is invalid. The message names the key.
    """
    for key, value in flatten(config).items():
        for number in value if isinstance(value, list) else [value]:
            if not isinstance(number, int | float):
                continue
            if not abs(number) < 2**31:
                raise UserError(f"config.{key}={value!r} must be a number less than {2**31}")
            if number < 0 and key not in _SIGNED_KEYS:
                raise UserError(f"config.{key}={value!r} must not be negative")
            if number < 1 and key.split(".")[-1] in _SIZES:
                raise UserError(f"config.{key}={value!r} must be at least 1")


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flattens a config or nested dicts to `{"section.key": value}`, with tuples converted to lists, as in JSON.

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

    >>> differences({"seed": 0, "workers": 0}, {"seed": 1, "workers": 4})
    ['seed: 0 -> 1']
    """
    # With batchwise prompt selection, predictions depend on the size of the test batches.
    binding = ("eval.batch_size",) if old.get("learner.batchwise") else ()
    keys = sorted(k for k in {*old, *new} if not k.startswith(RESUMABLE_KEYS) or k in binding)
    old = {**flatten(DEFAULTS), **old}  # a run of an earlier version used the defaults of later options
    return [f"{k}: {old.get(k, 'absent')!r} -> {new.get(k, 'absent')!r}" for k in keys if old.get(k) != new.get(k)]


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
