"""Config files: by path, or by the name of a shipped config.

At its top this file imports the standard library only, so that `--list` starts at once.
"""

import ast
import difflib
import runpy
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cdl_jax.errors import UserError, one_line_traceback
from cdl_jax.runtime import paths

if TYPE_CHECKING:
    import ml_collections

_PACKAGE = Path(__file__).parent


def configs_folder() -> Path:
    """Returns the folder of the shipped configs.

    It is `configs/` beside the package, or inside an installed package.
    """
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def shipped_configs() -> dict[str, Path]:
    """Returns name -> path of each shipped config, sorted by name."""
    return {path.stem: path for path in sorted(configs_folder().glob("*.py")) if not path.stem.startswith("_")}


def split_arguments(text: str) -> tuple[str, str]:
    """Splits a value of --config into the config file and its arguments.

    The arguments follow a colon. A path may contain colons: the longest part before a colon that is a file counts.

    >>> split_arguments("quickstart:distill=none,seed=3")
    ('quickstart', 'distill=none,seed=3')
    """
    ends = [index for index, letter in enumerate(text) if letter == ":"]
    for end in (len(text), *reversed(ends)):
        with suppress(UserError, OSError):
            if paths.resolve(text[:end], "--config").is_file():
                return text[:end], text[end + 1 :]
    first = next((end for end in ends if not text.startswith("://", end)), len(text))
    return text[:first], text[first + 1 :]


def find(text: str) -> Path:
    """Returns the path of a config file.

    Args:
      text: a path, or the name of a shipped config, with or without `configs/` before it and `.py` behind it.

    Raises:
      UserError: the file does not exist. The message suggests a shipped config.

    >>> find("quickstart").name
    'quickstart.py'
    """
    path = paths.resolve(text, "--config")
    try:
        if path.is_file():
            return path
    except OSError as error:
        raise UserError(
            f"config file {text} cannot be read ({error.strerror}): correct that, or copy the file"
        ) from None
    known = shipped_configs()
    parent, name = path.parent.as_posix(), path.name.removesuffix(".py")
    if parent in (".", "configs") and name in known:
        return known[name]
    if path.is_dir():
        raise UserError(f"config file {text} is a folder: name a file in it")
    close = difflib.get_close_matches(name.casefold(), known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UserError(f"config file {text} does not exist: {hint}python -m cdl_jax.main --list names the shipped configs")


def load(path: Path, arguments: str) -> Any:
    """Runs a config file and calls its `get_config`.

    Args:
      path: the config file.
      arguments: the text behind the colon of --config.

    Returns:
      The return value of `get_config(arguments)`, which should be a ConfigDict.

    Raises:
      UserError: the file cannot be run or has no `get_config`. The message names the line.
    """
    try:
        functions = runpy.run_path(str(path), run_name="config")
        if "get_config" not in functions:
            raise UserError(f"config file {path}: it does not define get_config(text); see configs/quickstart.py")
        return functions["get_config"](arguments)
    except UserError:
        raise
    except (Exception, SystemExit) as error:  # a config is a program of the user's
        raise UserError(f"config file {path}{one_line_traceback(error, str(path))}") from error


def load_config(path: Path, arguments: str) -> "ml_collections.ConfigDict":
    """Returns the config of a config file, after a check of its keys and values.

    Args:
      path: the config file.
      arguments: the text behind the colon of --config.

    Raises:
      UserError: the file cannot be run, returns no ConfigDict, or has a key or value that no config has.
    """
    import ml_collections

    config = load(path, arguments)
    if not isinstance(config, ml_collections.ConfigDict):
        raise UserError(
            f"config file {path}: get_config returns {type(config).__name__}, not a ConfigDict; begin with "
            "cdl_jax.config.default(...)"
        )
    if isinstance(config, ml_collections.FrozenConfigDict):
        config = ml_collections.ConfigDict(config)
    _check_tree(config, f"config file {path}")
    return config


def _check_tree(config, what, prefix=""):
    """Checks that keys are names of options, and that options have values.

    what: the source of the config, for messages.

    Raises:
      UserError: a key is not the name of an option, an option has neither a value nor a default, or a section is a dict
        instead of a ConfigDict.
    """
    import ml_collections

    for key in list(config._fields):  # the public iterators sort, which fails with numbers between names
        if not isinstance(key, str) or not key or "." in key:
            raise UserError(
                f"{what}: the key {key!r}{f' of config.{prefix}' if prefix else ''} is not the name of an option: use "
                "names such as 'epochs'"
            )
        path = f"{prefix}.{key}" if prefix else key
        try:
            value = config[key]
        except ml_collections.config_dict.RequiredValueError:
            raise UserError(f"{what}: config.{path} is a required placeholder: set its value in the file") from None
        if isinstance(value, ml_collections.ConfigDict):
            _check_tree(value, what, path)
        elif isinstance(value, dict):
            raise UserError(f"{what}: config.{path} is a dict that is not converted: use an ml_collections.ConfigDict")


def summary(path: Path) -> str:
    """Returns the first line of the docstring of a Python file.

    The file is not imported.
    """
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n", 1)[0]
