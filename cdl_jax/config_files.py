"""Finds config files: by path, or by name among those that ship with cdl_jax.

Standard library only, so that `--list` starts at once.
"""

import ast
import difflib
import runpy
from pathlib import Path

from cdl_jax.errors import UserError, one_line_traceback
from cdl_jax.runtime import paths

_PACKAGE = Path(__file__).parent


def configs_folder() -> Path:
    """Returns the folder of the shipped configs: `configs/` beside the package, or inside an installed one."""
    inside = _PACKAGE / "configs"
    return inside if inside.is_dir() else _PACKAGE.parent / "configs"


def shipped_configs() -> dict[str, Path]:
    """Returns the path of each shipped config by its name, sorted."""
    return {path.stem: path for path in sorted(configs_folder().glob("*.py")) if not path.stem.startswith("_")}


def find(text: str) -> Path:
    """Returns the config file that `text` names.

    Args:
      text: a path; or the name of a shipped config, with or without `configs/` before and `.py` behind it.

    Raises:
      UserError: the file does not exist; the message names the nearest shipped config.
    """
    path = paths.resolve(text, "--config")
    if path.is_file():
        return path
    known = shipped_configs()
    parent, name = path.parent.as_posix(), path.name.removesuffix(".py")
    if parent in (".", "configs") and name in known:
        return known[name]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    raise UserError(f"config file {text} does not exist: {hint}python -m cdl_jax.main --list names the shipped configs")


def load(path: Path, arguments: str):
    """Returns what `get_config(arguments)` of a config file returns.

    Raises:
      UserError: the file cannot be run or has no `get_config`; the message names the line.
    """
    try:
        functions = runpy.run_path(str(path), run_name="config")
        if "get_config" not in functions:
            raise UserError(f"config file {path}: no get_config(text) in it; see configs/quickstart.py")
        return functions["get_config"](arguments)
    except UserError:
        raise
    except Exception as error:  # a config is a program of the user's
        raise UserError(f"config file {path}{one_line_traceback(error, str(path))}") from error


def summary(path: Path) -> str:
    """Returns the first line of a Python file's docstring, without importing it."""
    text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    return text.split("\n", 1)[0]
