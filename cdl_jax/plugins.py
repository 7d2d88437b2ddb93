"""Finds plug-ins by name, checks contracts, and suggests names for mistyped ones.

A plug-in is a file of a plug-in folder, except `__init__.py`, `base.py` and files with a leading underscore. Helpers of
plug-ins are in subfolders.
"""

import difflib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from cdl_jax import schema
from cdl_jax.errors import UserError, one_line_traceback

Value = TypeVar("Value")


class UnknownPluginError(UserError):
    """No plug-in has the name that a config gives."""


# Folder -> what each of its plug-ins defines: OPTIONS, a dict, and functions with the arguments of their callers.
_CONTRACTS: dict[str, dict[str, str | None]] = {
    "methods": {"defaults": "", "build": "config, info"},
    "distill": {"OPTIONS": None, "build": "options, teacher, student"},
    "distill.detection": {"OPTIONS": None, "build": "options, teacher, student"},
    "models": {"build": "options, num_classes", "OPTIONS": None, "SIZES": None, "torch_name": "path"},
    "models.learners": {"OPTIONS": None, "build": "options, *, dim, key_dim, depth, num_tasks"},
    "data.sources": {"OPTIONS": None, "load": "options"},
    "published": {"build": ""},
}
_NULLABLE = ("torch_name",)  # parts of a contract that may be None
# Folder -> what its plug-ins may define too, in the same form; a tuple has the permitted values of a text.
_OPTIONAL: dict[str, dict[str, str | tuple[str, ...] | None]] = {
    "methods": {"PROBLEM": ("classification", "detection", "generation"), "teacher_options": "config"},
    "models.learners": {
        "check_growth": "options, num_tasks, new_options, new_num_tasks",
        "teaches_as_saved": "options",
    },
    "distill": {"PRESET": None, "check_growth": "config, num_tasks, new_config, new_num_tasks"},
    "data.sources": {"placeholder": "options", "explain_download": ""},
}

# Files of the plug-ins that users brought, and their folders, which may have helpers: errors in these are the user's.
_USER_FILES: set[str] = set()

# Option, flag or name -> what other projects call it, in lower case. The first known one is suggested.
_SYNONYMS = {
    "optim.learning_rate": "lr base_lr init_lr rate",
    "optim.weight_decay": "wd decay l2",
    "optim.name": "optimizer opt optim",
    "optim.schedule": "scheduler lr_scheduler sched lr_schedule",
    "optim.warmup_epochs": "warmup",
    "optim.clip_norm": "grad_clip clip_grad max_grad_norm gradient_clip_val clip",
    "optim.accumulate": "accumulation gradient_accumulation_steps accumulate_grad_batches iter_size",
    "train.batch_size": "bs batch batchsize train_batch_size per_device_train_batch_size",
    "train.epochs": "num_epochs n_epochs nb_epochs max_epochs num_train_epochs epoch",
    "devices": "gpus gpu num_gpus n_gpu ngpus device num_devices",
    "data.num_workers": "workers n_workers nworkers",
    "seed": "random_seed random_state manual_seed",
    "log.to": "tensorboard wandb use_wandb mlflow csv logger loggers report_to log_with",
    "distill.name": "kd distillation distiller scheme",
    "distill": "kd distillation distiller scheme",
    "learner": "prompt prompts pool cl_method",
    "data.name": "dataset data_set ds dataset_name",
    "data": "dataset data_set ds dataset_name",
    "data.path": "data_dir data_path data_root dataroot datadir root dataset_path",
    "data.num_tasks": "tasks n_tasks nb_tasks num_task n_experiences",
    "tasks": "num_tasks n_tasks nb_tasks",
    "network": "backbone arch architecture model net model_name",
    "student": "backbone arch architecture model net model_name",
    "network.family": "backbone arch architecture model net model_name",
    "student.family": "backbone arch architecture model net model_name",
    "network.image_size": "img_size input_size resolution imgsz",
    "student.image_size": "img_size input_size resolution imgsz",
    "network.weights": "pretrained checkpoint_path pretrained_path ckpt",
    "student.weights": "pretrained checkpoint_path pretrained_path ckpt",
    "network.dtype": "precision amp fp16 bf16",
    "student.dtype": "precision amp fp16 bf16",
    "distill.temperature": "t tau temp kd_t",
    "kd.temperature": "t tau temp kd_t",
    "learner.pool": "pool_size size",
    "learner.length": "prompt_length prompt_len e_p_length",
    "workdir": "output_dir output out outdir save_dir logdir log_dir exp_name resume",
    "mode": "eval evaluate test train",
    "coda": "codaprompt coda_prompt",
    "os_prompt": "osprompt one_stage",
    "simple_cil": "simplecil",
    "aper": "adam_adapter adam_ssf adam_vpt",
    "fine_tuning": "seqft ft",
    "fitnets": "hint hints",
    "kd": "hinton vanilla_kd logits",
    "none": "no off ce baseline",
    "supervised": "finetune finetuning ce",
    "nearest_mean": "ncm nme",
}


def list_plugins(folder: str) -> list[str]:
    """Returns the sorted names of the plug-ins in `cdl_jax.<folder>`.

    The plug-ins are not imported.

    Args:
      folder: one of the folders in `_CONTRACTS`, such as "distill" or "models.learners".

    >>> list_plugins("models.learners")[:4]
    ['aper', 'apt', 'coda', 'dualprompt']
    """
    package = importlib.import_module(f"cdl_jax.{folder}")
    modules = [module for module in pkgutil.iter_modules(package.__path__) if not module.ispkg]
    return sorted(module.name for module in modules if module.name != "base" and not module.name.startswith("_"))


def did_you_mean(word: str, known: Iterable[object]) -> str:
    """Returns a hint for a mistyped word.

    The hint is the closest known word, then all known words if there are at most 30. Case has no effect, and the
    section of a key may be missing. `_SYNONYMS` translates the words of other projects.

    >>> did_you_mean("lr", ["optim.learning_rate", "seed"])
    "did you mean 'optim.learning_rate'? known: optim.learning_rate, seed"
    """
    known = sorted(str(k) for k in known if str(k))
    if (new_name := schema.RENAMED_OPTIONS.get(word)) in known:
        values = schema.RENAMED_VALUES.get(word, {}).items()
        return "; ".join([f"it is now {new_name!r}", *(f"its value {old!r} is now {new!r}" for old, new in values)])
    by_lower_case = {key.casefold(): key for key in known}
    word = word.casefold()
    tail = word.split(".")[-1].replace("-", "_")
    translations = [name for name, words in _SYNONYMS.items() if tail in words.split()]
    matches = [k for name in translations for k in known if k == name or k.endswith(f".{name}")]
    same_tail = (k for k in known if k.casefold().split(".")[-1] == tail)
    matches += sorted(same_tail, key=lambda k: ("train." not in k, len(k)))
    close = difflib.get_close_matches(word, by_lower_case, n=1, cutoff=0.5)
    suggestion = by_lower_case.get(word) or next(iter(matches), None) or (by_lower_case[close[0]] if close else None)
    hint = f"did you mean {suggestion!r}? " if suggestion else ""
    if len(known) <= 30:
        return hint + f"known: {', '.join(known)}"
    if hint:
        return hint
    if any(key.endswith("data.name") for key in known):
        return "python -m cdl_jax.main --config ... --mode=describe --show_config shows all keys"
    return f"the nearest of {len(known)}: {', '.join(difflib.get_close_matches(word, known, n=3, cutoff=0.0))}"


def load_plugin(folder: str, name: str) -> ModuleType:
    """Imports the plug-in `name` of a folder, or a user's module.

    A new scheme or learner is therefore one new file, without registration. A user's module is checked against the
    contract of the folder.

    Args:
      folder: one of the folders in `_CONTRACTS`.
      name: a file of `cdl_jax.<folder>`, or the dotted path of a user's module, such as "my_package.my_scheme".

    Returns:
      The module.

    Raises:
      UnknownPluginError: there is no such module. The message suggests the closest name.
      UserError: the user's module cannot be imported, lacks a part of the contract, or has a function with other
        arguments. The message names the file, and the line or the function.
    """
    if not isinstance(name, str):
        known = ", ".join(list_plugins(folder))
        raise UnknownPluginError(f"the name of a module in {folder} must be text, not {name!r}; known: {known}")
    if "/" in name or name.endswith(".py"):
        raise UnknownPluginError(f"no module {name!r} in {folder}: {_hint_for_file(name)}")
    if "." not in name:
        if name in list_plugins(folder):
            return importlib.import_module(f"cdl_jax.{folder}.{name}")
    else:
        module = _import_user_module(name)
        if module is None:
            raise UnknownPluginError(
                f"no module {name!r} in {folder}: {name.replace('.', '/')}.py is neither in the current folder nor on "
                f"the Python path; {did_you_mean(name.split('.')[-1], list_plugins(folder))}"
            )
        _check_contract(module, folder, name)
        return module
    raise UnknownPluginError(f"no module {name!r} in {folder}: {did_you_mean(name, list_plugins(folder))}")


def _hint_for_file(name):
    """Returns what to write instead of the path of a file.

    The text follows the path in a message.
    """
    path = Path(os.path.relpath(name)).with_suffix("")
    if ".." in path.parts:
        package, file = Path(name).parent.name, path.name
        return (
            f"name a file by its dotted path, such as {package}.{file}, and put the folder of {package} on PYTHONPATH"
        )
    if len(path.parts) == 1:
        return f"put the file into a folder, such as mine, and name it by its dotted path, mine.{path.name}"
    return f"did you mean {'.'.join(path.parts)!r}? a file is named by its dotted path"


def optional_part(folder: str, name: str, part: str) -> Any:
    """Returns a part that the plug-ins of a folder may define.

    The result is None if the plug-in `name` does not define the part.

    Args:
      folder: a folder in `_OPTIONAL`.
      name: as in `load_plugin`.
      part: a part in `_OPTIONAL[folder]`.

    Raises:
      UserError: as in `load_plugin`.

    >>> optional_part("distill", "kd", "PRESET") is None
    True
    """
    if part not in _OPTIONAL[folder]:
        raise KeyError(f"{part} is no optional part of {folder}")
    return vars(load_plugin(folder, name)).get(part)


def explain_error(error: BaseException) -> str | None:
    """Returns one line for an error of a user's plug-in or its helpers.

    The result is None for any other error. The line has the last of the user's files in the traceback, its last line
    there, and the beginning of the error's text.
    """
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    path = next(filter(_is_users_file, reversed(files)), None)
    if path is None:
        return None
    text = " ".join(one_line_traceback(error, path).split())
    return f"plug-in {path}{text if len(text) <= 400 else text[:400] + ' ...'}"


def _is_users_file(path):
    """Returns whether a file is a user's plug-in or a helper of one.

    A helper is in the folder of a plug-in, and not installed there.
    """
    folders = map(str, Path(path).parents)
    return path in _USER_FILES or ("site-packages" not in path and not _USER_FILES.isdisjoint(folders))


@contextmanager
def errors_in_one_line(path: str) -> Iterator[None]:
    """Turns an error of the block into a `UserError` of one line.

    The block runs a user's plug-in.

    Args:
      path: the file of the plug-in.
    """
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # a plug-in is a program of the user's
        raise UserError(explain_error(error) or f"plug-in {path}{one_line_traceback(error, path)}") from error


def _import_user_module(name: str) -> ModuleType | None:
    """Returns the module of a dotted path, None if there is none.

    Raises:
      UserError: the module, or a package that contains it, fails while it is imported.
    """
    path = name
    if (folder := os.getcwd()) not in sys.path:  # an installed command starts without it
        sys.path.append(folder)
    try:
        if not all(name.split(".")) or (spec := importlib.util.find_spec(name)) is None:
            return None
        path = spec.origin or name
        _USER_FILES.add(path)
        if not name.startswith("cdl_jax."):
            _USER_FILES.add(os.path.dirname(path))
        return importlib.import_module(name)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a plug-in is a program of the user's
        if isinstance(error, ModuleNotFoundError) and f"{name}.".startswith(f"{error.name}."):
            return None
        raise UserError(f"plug-in {path}{one_line_traceback(error, path)}") from error


def _check_contract(module, folder, name):
    """Raises UserError where a user's module violates the contract of a folder."""
    contract = _CONTRACTS[folder]
    parts = " and ".join(part if arguments is None else f"{part}({arguments})" for part, arguments in contract.items())
    for part, arguments in contract.items():
        value = getattr(module, part, None)
        if value is None and part in _NULLABLE and part in vars(module):
            continue
        if value is None:
            raise UserError(f"{name} is not a plug-in of {folder}: {module.__file__} does not define {part}; "
                            f"a plug-in of this folder defines {parts}")  # fmt: skip
        _check_part(module, part, value, arguments)
    for part, arguments in _OPTIONAL.get(folder, {}).items():
        if part in vars(module):
            _check_part(module, part, vars(module)[part], arguments)


def _check_part(module, part, value, arguments):
    """Checks a part of a user's module.

    Raises:
      UserError: the part is no dict, no function of `arguments`, or no permitted text, or the default of an option is
        not permitted.
    """
    if isinstance(arguments, tuple):
        if value not in arguments:
            raise UserError(f"{module.__file__}: {part}={value!r}: use {' or '.join(map(repr, arguments))}")
    elif arguments is not None:
        check_arguments(value, arguments, f"{module.__file__}: {part}")
    elif not isinstance(value, Mapping):
        raise UserError(f"{module.__file__}: {part} must be a dict of options and their defaults, "
                        f"but it is of type {type(value).__name__}")  # fmt: skip
    elif part == "OPTIONS":
        check_defaults(value, f"{module.__file__}: {part}")


def check_defaults(declared: Mapping[str, Any], what: str) -> None:
    """Checks the default of each option by its own declaration.

    Args:
      declared: options by name; sections are dicts.
      what: name for the options, for the message.

    Raises:
      UserError: a default is not permitted.
    """
    from cdl_jax import options  # it imports this module

    for key, option in options.rows(declared):
        if problem := option.problem(option.default):
            raise UserError(f"{what}: the default {key}={option.default!r}{problem}")


def check_arguments(function: Callable, arguments: str, what: str = "a plug-in's function") -> None:
    """Checks that a function of a user's plug-in accepts the arguments of its caller.

    Args:
      function: the function.
      arguments: names of the arguments, such as "options, *, dim"; those after "*" are passed by name.
      what: name for a value that is not a function, for the message.

    Raises:
      UserError: the function does not accept them. The message names its file, the function and the arguments.

    >>> check_arguments(lambda options, dim=1: None, "options, *, dim")
    """
    if not callable(function):
        raise UserError(f"{what} must be a function of ({arguments}), but it is of type {type(function).__name__}")
    by_position, _, by_name = arguments.partition("*")
    positional, named = ([word.strip() for word in part.split(",") if word.strip()] for part in (by_position, by_name))
    try:
        signature = inspect.signature(function).replace(return_annotation=inspect.Signature.empty)
    except ValueError:  # a function of C without a signature
        return
    try:
        signature.bind(*positional, **dict.fromkeys(named))
    except TypeError as error:
        raise UserError(
            f"{describe_function(function)} has the arguments {signature}, but is called with ({arguments}): {error}"
        ) from None


def check_hooks(cls: type, base: type) -> None:
    """Checks the names and arguments of a user's class against those of `base`.

    Args:
      cls: a subclass of `base`.
      base: a class of the contract; its public functions and attributes are the hooks.

    Raises:
      UserError: a hook has other arguments than in `base`, or a name is not a hook, but is close to one that the class
        leaves out. The message names the file and the function.
    """
    own, declared = {}, set()
    for parent in reversed(cls.__mro__[: cls.__mro__.index(base)]):
        own.update(vars(parent))
        declared |= {*vars(parent), *vars(parent).get("__annotations__", {})}
    hooks = {name: vars(base).get(name) for name in (*vars(base), *base.__annotations__)}
    hooks = {name: hook for name, hook in hooks.items() if name == "__call__" or not name.startswith("_")}
    missing = [name for name in hooks if name not in declared]
    for name, value in own.items():
        if callable(hooks.get(name)):
            _check_hook(value, hooks[name], f"{describe_class(cls)}: {name}")
        elif not name.startswith("_") and not hasattr(base, name) and name not in hooks:
            if close := difflib.get_close_matches(name, missing, n=1, cutoff=0.8):
                raise UserError(
                    f"{describe_class(cls)}: {name!r} is no part of {base.__module__}.{base.__name__}: did you mean "
                    f"{close[0]!r}? if not, choose another name, such as '_{name}'"
                )


def _check_hook(value, hook, what):
    """Raises UserError where an overriding function cannot be called as `hook`.

    The call has the required arguments of `hook`.
    """
    if isinstance(value, classmethod):
        return
    required = [p.name for p in inspect.signature(hook).parameters.values() if p.default is inspect.Parameter.empty]
    arguments = required[1:] if isinstance(value, staticmethod) else required
    check_arguments(value, ", ".join(arguments), what)


def describe_class(cls: type) -> str:
    """Returns file and name of a user's class, for messages about a plug-in."""
    file = getattr(sys.modules.get(cls.__module__), "__file__", None)
    return f"{file or cls.__module__}: class {cls.__qualname__.split('<locals>.')[-1]}"


def describe_function(function: Callable) -> str:
    """Returns file and name of a function, for messages about a user's plug-in."""
    plain = inspect.unwrap(getattr(function, "func", function))  # of a partial
    code = getattr(plain, "__code__", None)
    name = getattr(plain, "__qualname__", type(plain).__name__).replace(".<locals>", "")
    return f"{code.co_filename}: function {name}" if code else name


def describe_type(value: Any) -> str:
    """Returns the type of what a user's function returns, for messages.

    >>> describe_type((1, 2, 3)), describe_type([1])
    ('a tuple of 3', 'list')
    """
    return f"a tuple of {len(value)}" if isinstance(value, tuple) else type(value).__name__


def lookup(table: Mapping[str, Value], name: str, kind: str) -> Value:
    """Returns `table[name]`.

    Args:
      table: the known entries.
      name: the key.
      kind: what an entry is, for the message.

    Raises:
      UserError: the table has no such key. The message suggests the closest one.
    """
    if name not in table:
        raise UserError(f"no {kind} of the name {name!r}: {did_you_mean(name, table)}")
    return table[name]
