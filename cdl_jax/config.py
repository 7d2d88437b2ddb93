"""Configs: defaults, arguments after the colon, checks with one-line errors, and what a resumed run must share.

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
from functools import partial
from pathlib import Path

import ml_collections
import numpy as np

from cdl_jax import plugins
from cdl_jax.errors import UserError

DEFAULTS = {
    "seed": 0,
    # Several at once, such as (0, 1, 2), in place of `seed`: one program, mapped over what is trained, around one
    # frozen backbone. The pictures are common to all, and so is the order of classes unless data.class_order_seed=-1
    # gives each seed its own. On a CPU short runs gain, steps do not, and with convolutions they take longer:
    # docs/maintainers/benchmarks.md.
    "seeds": (),
    "train": {
        "epochs": 20,
        "batch_size": 64,
        "last_batch": "drop",  # of an epoch, where it is incomplete; or "keep": it is trained in its own size
        # So many steps in one program, for networks whose step is shorter than what starts it:
        # docs/maintainers/benchmarks.md. Log lines, evaluations and checkpoints come where they would, what is left
        # before one goes step by step, and a signal is heard after at most so many steps. On a CPU ViTs keep every
        # bit, convolutions round otherwise.
        "steps_per_call": 1,
        # A task ends, with the weights of its best evaluation (see eval.every_epochs) by the method's headline, where
        # `patience` epochs surpass that one by no more than `margin` percent. 0: never before its last epoch.
        "early_stopping": {"patience": 0, "margin": 0.0},
        # After a step whose loss, gradients or weights hold a NaN or an infinity: "stop", or "skip" it, as if the batch
        # had not been. Either way nonfinite.json tells of it, and no checkpoint holds what came of it.
        "on_nonfinite": "stop",
    },
    "eval": {
        "batch_size": 256,
        "forward_transfer": True,
        "every_epochs": 0,  # also within a task, each so many epochs; the best is in results.json. 0: only after it
    },
    "checkpoint": {
        "every_steps": 500,  # within a task; one more after each task. 0: only after tasks
        "keep": 2,  # of those within a task; should the newest be damaged, the run goes on from the one before
        # How many of those after a task, the newest; 0: all. Evaluation (--mode=eval --task) and analysis of an earlier
        # task need its own, and so does a run whose teacher is this one's network as it was after each task.
        "keep_tasks": 0,
    },
    "log": {"every_steps": 50, "tensorboard": True, "report": True},  # report.html takes seconds to draw
    # Stops with a traceback at the operation that gave the first NaN; steps take several times as long.
    "debug_nans": False,
    "devices": 0,  # how many local devices share a batch; 0: all
    "peer_devices": 1,  # along how many of them whole networks that learn together are spread (dml, okddip)
    # Over how many of them weights are stored in parts, for a teacher that no single one can hold; batches are split
    # over all devices as before.
    "fsdp_devices": 1,
    # Of the kernels of networks that are frozen for the whole run, on the devices and in checkpoints: "bfloat16" halves
    # their bytes. What is trained, its optimizer, losses, norms and softmax stay in float32; what is computed in is the
    # network's own `dtype`.
    "frozen_dtype": "float32",
    "workers": 0,  # processes that decode pictures which are read from disk; 0: threads of this process
    "compilation_cache": "~/.cache/cdl_jax/compiled",  # folder of compiled programs, for all runs; "": none is kept
    "resident_limit_mb": 4096,  # arrays of pictures up to this size live on the device; larger ones are streamed
}

# Keys that change neither weights nor metrics, so a run may be resumed with other values of them; what it does after a
# bad step changes nothing before.
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


_ANY_SIGN = ("distill.norm_epsilon", "data.class_order_seed")  # the numbers that may be negative
_SIZES = ("dim", "depth", "heads", "patch_size", "image_size")  # of any network


class Config(ml_collections.ConfigDict):
    """Takes what a config file may assign: values that fit an option's type, from Python, NumPy or pathlib."""

    def __init__(self, tree=(), type_safe=True, prefix=""):
        super().__init__(type_safe=type_safe)
        object.__setattr__(self, "_prefix", prefix)
        for key, value in dict(tree).items():
            self[key] = value

    def __setitem__(self, key, value):
        place = f"{self._prefix}{key}"
        if isinstance(value, dict | ml_collections.ConfigDict):
            value = Config(value, self.is_type_safe, place + ".")
        elif not isinstance(value, ml_collections.FieldReference):
            value = _fitted(place, value, self[key]) if key in self and self.is_type_safe else _plain(value)
        super().__setitem__(key, value)


def _fitted(place, value, old):
    """Returns the value of an option as an object of the type of its `old` value.

    Raises:
      UserError: the value is of another kind.
    """
    new, kind = _plain(value), type(old)
    if kind is str and isinstance(new, tuple) and new and all(type(one) is int for one in new):
        return ",".join(map(str, new))  # class ids
    if kind is tuple and isinstance(value, list | np.ndarray):
        return new if isinstance(new, tuple) else (new,)
    if kind is int and type(new) is float and new.is_integer():
        return int(new)
    if kind is float and type(new) is int:
        return float(new)
    if old is None or isinstance(new, kind) and (type(new) is bool) == (kind is bool):
        return new
    raise UserError(f"config.{place}={value!r} must be of type {kind.__name__}, as {old!r} is")


def _plain(value):
    """Returns `value` with NumPy scalars and arrays as Python's, paths as text and sequences as tuples."""
    if isinstance(value, np.generic | np.ndarray):
        value = value.tolist()
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return tuple(map(_plain, value)) if isinstance(value, list | tuple) else value


def arguments(text: str, **defaults) -> dict:
    """Reads `key=value,key=value` from behind the colon of `--config file.py:...`; types are those of the defaults.

    Raises:
      UserError: an unknown key (the nearest known one is named) or a value of the wrong type.
    """
    chosen = dict(defaults)
    for part in filter(None, (text or "").split(",")):
        key, found, value = part.partition("=")
        if not found or key not in defaults:
            raise UserError(f"config argument {part!r} is unknown: {plugins.did_you_mean(key, defaults)}")
        kind = type(defaults[key])
        try:
            chosen[key] = {"true": True, "false": False}[value.lower()] if kind is bool else kind(value)
        except (ValueError, KeyError):
            raise UserError(f"config argument {key}={value!r} is no {kind.__name__}") from None
    return chosen


def default(method: str, *, data: str, **choices) -> ml_collections.ConfigDict:
    """All sections with their default values: what is common, the data source's, and the method's for `choices`.

    Raises:
      UserError: a module of that name does not exist, or the method has no such choice.
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


def check_keys(config) -> None:
    """Refuses a config whose keys differ from those of its method, data source, learner, scheme and networks.

    Raises:
      UserError: names an unknown key and the nearest known one, an option that is missing, or a choice that does not
        fit the others.
    """
    found = flatten(config)
    for key in ("method", "data.name"):
        if not isinstance(found.get(key), str):
            raise UserError(f"config.{key} is missing: begin the config with cdl_jax.config.default(...)")
    rebuilt = _rebuilt(config, found)
    known = flatten(rebuilt)
    choices = {"data": "data.name"} | {key.split(".")[0]: key for key in found if key.endswith((".family", ".name"))}
    choices.pop("optim", None)
    theirs = tuple(
        f"{section}." for section, key in choices.items() if key.endswith("family") and "." in str(found[key])
    )
    for key in sorted(known.keys() ^ found.keys(), key=lambda key: (key in found, key)):
        section = key.split(".")[0]
        choice = choices.get(section, "method")
        if key.startswith(theirs):  # a network of a user's package
            continue
        if key in known:
            raise UserError(
                f"config.{key} is missing, an option of config.{choice}={found[choice]!r}: the config has the options "
                "of another; choose it in the config file or behind its colon (file.py:learner=coda), which brings its "
                "options"
            )
        of = f" of config.{choice}={found[choice]!r}" if section in choices else ""
        raise UserError(f"unknown key config.{key}{of}: {plugins.did_you_mean(key, known)}")
    for section in config:  # an empty one has no keys
        if section not in rebuilt:
            raise UserError(f"unknown key config.{section}: {plugins.did_you_mean(section, rebuilt)}")


def _rebuilt(config, found):
    """The default config of the method, data source, learner, scheme and families of networks that a config names."""
    source, method = config.data.name, plugins.load_plugin("methods", config.method)
    parts, choices, networks = inspect.signature(method.defaults).parameters, {}, {}
    for name in parts:
        section = "student" if name == "network" and "network.family" not in found else name
        if isinstance(chosen := found.get(f"{section}.name"), str):
            choices[name] = chosen
        elif isinstance(family := found.get(f"{section}.family"), str):
            sizes = plugins.load_plugin("models", family).SIZES
            if sizes:
                networks[name] = (section, family, next(iter(sizes)))
    rebuilt = partial(default, config.method, data=source, **choices)
    try:
        return rebuilt(**{name: size for name, (_, _, size) in networks.items()})
    except plugins.UnknownPluginError:
        raise
    except UserError:
        culprits = [name for name, (_, _, size) in networks.items() if _refuses(rebuilt, **{name: size})]
    name = (culprits or list(networks))[0]
    section, family, _ = networks[name]
    of = f" with config.learner.name={choices['learner']!r}" if "learner" in choices else ""
    raise UserError(
        f"config.{section}.family={family!r} does not fit config.method={config.method!r}{of}: name another network in "
        f"the config file or behind its colon (file.py:{name}=...)"
    )


def _refuses(call, **options):
    try:
        call(**options)
    except UserError:
        return True
    return False


def with_source(config, name: str):
    """Returns the config with another data source, whose own options have their default values."""
    from cdl_jax.data import stream

    common = {key: value for key, value in config.data.items() if key in stream.OPTIONS}
    changed = Config(config)
    del changed["data"]
    changed.data = {**common, **plugins.load_plugin("data.sources", name).OPTIONS, "name": name}
    return changed


def with_defaults(stored: dict) -> dict:
    """Returns a stored config with the options that it lacks, as a run of an earlier version does."""

    def merge(defaults, values):
        nested = {key: merge(defaults.get(key, {}), v) for key, v in values.items() if isinstance(v, dict)}
        return {**defaults, **values, **nested}

    whole = merge(DEFAULTS, stored)
    try:
        return merge(_rebuilt(ml_collections.ConfigDict(copy_with_tuples(whole)), flatten(whole)).to_dict(), whole)
    except (UserError, AttributeError, KeyError):
        return whole  # not a config of this version; `check_keys` names the reason


def copy_with_tuples(tree):
    """A deep copy of nested dicts, with lists made tuples so that a ConfigDict keeps them as values."""
    if isinstance(tree, dict):
        return {key: copy_with_tuples(value) for key, value in tree.items()}
    return tuple(tree) if isinstance(tree, list) else tree


def check(config) -> None:
    """Refuses unknown keys, and values of the common sections out of range; methods and sources check their own.

    Raises:
      UserError: names the key and what it must be.
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
            "config.train.steps_per_call above 1 does not go with config.fsdp_devices: what is stored in parts is "
            "large, and its steps gain nothing; leave one of them at 1"
        )
    seeds = tuple(config.seeds)
    if len(set(seeds)) < len(seeds) or not all(type(seed) is int and seed >= 0 for seed in seeds):
        raise UserError(f"config.seeds={seeds} must be different integers, none of them negative")
    for key in ("eval.every_epochs", "checkpoint.every_steps", "checkpoint.keep_tasks", "devices", "workers", "seed"):
        if flatten(config)[key] < 0:
            raise UserError(f"config.{key}={flatten(config)[key]} must not be negative")
    stopping = config.train.early_stopping
    if stopping.patience < 0 or stopping.margin < 0:
        raise UserError(
            f"config.train.early_stopping: patience={stopping.patience}, margin={stopping.margin}: not below 0"
        )
    if stopping.patience and (not config.eval.every_epochs or seeds):
        raise UserError(
            "config.train.early_stopping needs config.eval.every_epochs, and one seed: run the seeds one by one"
        )
    for seed in (config.seed, *seeds):
        if seed >= 2**31:  # steps take it as int32
            raise UserError(f"config: seed {seed} must be less than {2**31}")
    check_numbers(config)


def seeds_of(config) -> tuple[int, ...]:
    """The seeds that the program of a config trains."""
    return tuple(config.seeds) or (config.seed,)


def check_numbers(config) -> None:
    """Refuses numbers that no option may have, in any section: no numbers, infinite, huge, or below 0.

    Raises:
      UserError: names the key.
    """
    for key, value in flatten(config).items():
        for number in value if isinstance(value, list) else [value]:
            if not isinstance(number, int | float):
                continue
            if not abs(number) < 2**31:
                raise UserError(f"config.{key}={value!r} must be a number less than {2**31}")
            if number < 0 and key not in _ANY_SIGN:
                raise UserError(f"config.{key}={value!r} must not be negative")
            if number < 1 and key.split(".")[-1] in _SIZES:
                raise UserError(f"config.{key}={value!r} must be at least 1")


def flatten(config, prefix="") -> dict:
    """`{"section.key": value}` of a config or of nested dicts; tuples become lists, as JSON has them."""
    flat = {}
    for key, value in config.items():
        if hasattr(value, "items"):
            flat.update(flatten(value, f"{prefix}{key}."))
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple | list) else value
    return flat


def differences(old: dict, new: dict) -> list[str]:
    """`key: old -> new` of every value that differs and bears on the results."""
    # A learner that chooses for whole batches predicts otherwise where test batches are of another size.
    bound = ("eval.batch_size",) if old.get("learner.batchwise") else ()
    keys = sorted(k for k in {*old, *new} if not k.startswith(RESUMABLE_KEYS) or k in bound)
    old = {**flatten(DEFAULTS), **old}  # a run of an earlier version did what the defaults of later options do
    return [f"{k}: {old.get(k, 'absent')!r} -> {new.get(k, 'absent')!r}" for k in keys if old.get(k) != new.get(k)]


def read(workdir: Path) -> dict | None:
    """The content of a run's config.json, None where there is none.

    Raises:
      UserError: the file is damaged.
    """
    path = workdir / "config.json"
    if not path.exists():
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict) or not isinstance(content.get("config"), dict):
            raise ValueError("no config in it")
        return content
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path} is damaged ({error}): restore it or choose another --workdir") from None
