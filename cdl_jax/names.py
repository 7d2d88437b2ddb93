"""What a config names: modules, and entries of tables."""

import ast
import difflib
import functools
import importlib
import importlib.util
import pkgutil
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from cdl_jax.errors import UserError

# What a plug-in of each folder defines at its top level. A file that lacks one of these is a helper.
_CONTRACTS = {
    "methods": ("build", "defaults"),
    "distill": ("build", "OPTIONS"),
    "models": ("build", "variant", "SIZES"),
    "models.prompts": ("build", "OPTIONS"),
    "data.sources": ("load", "OPTIONS"),
    "published": ("build", "IDENTITY"),
}


def available(folder: str) -> list[str]:
    """Returns the names of the plug-ins in `cdl_jax.<folder>`, sorted; they are parsed, not imported.

    folder: a key of `_CONTRACTS`.
    """
    package = importlib.import_module(f"cdl_jax.{folder}")
    paths = {m.name: Path(m.module_finder.path) / f"{m.name}.py" for m in pkgutil.iter_modules(package.__path__)}
    wanted = set(_CONTRACTS[folder])
    return sorted(name for name, path in paths.items() if path.is_file() and wanted <= _top_level(path))


@functools.cache
def _top_level(path):
    """Names of the functions and values that a file defines at its top level."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        found.update(target.id for target in targets if isinstance(target, ast.Name))
    return found


def nearest(word: str, known) -> str:
    """A hint for a mistyped word: the closest known one, then all of them where they are few."""
    known = sorted(str(k) for k in known)
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    hint = f"did you mean {close[0]!r}? " if close else ""
    return hint + (f"known: {', '.join(known)}" if len(known) <= 30 else "")


def load(folder: str, name: str) -> ModuleType:
    """Imports `cdl_jax.<folder>.<name>`, or `name` itself where it is a dotted path such as `my_package.my_scheme`.

    A new scheme or learner is therefore one new file and nothing else.

    Raises:
      UserError: there is no such module, and the message names the nearest one; or the module does not define
        `build`.
    """
    own = "." not in name
    path = f"cdl_jax.{folder}.{name}" if own else name
    try:
        if (name in available(folder)) if own else all(name.split(".")) and importlib.util.find_spec(path):
            module = importlib.import_module(path)
            if "build" in _CONTRACTS[folder] and not hasattr(module, "build"):
                raise UserError(f"{name} is no plug-in of {folder}: it does not define build")
            return module
    except ModuleNotFoundError as error:
        if error.name is None or not (path + ".").startswith(error.name + "."):
            raise  # the module exists; something that it imports does not
    raise UserError(f"no module {name!r} in {folder}: {nearest(name, available(folder))}")


def entry(table: Mapping, name: str, what: str):
    """`table[name]`.

    Raises:
      UserError: there is no `what` of this name.
    """
    if name not in table:
        raise UserError(f"no {what} of the name {name!r}: {nearest(name, table)}")
    return table[name]
