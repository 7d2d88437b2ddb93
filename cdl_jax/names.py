"""What a config names: modules, and entries of tables."""

import difflib
import importlib
import importlib.util
import pkgutil
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

from cdl_jax.errors import UserError


def available(folder: str) -> list[str]:
    """Names of the modules in `cdl_jax.<folder>` (dots for subfolders) that define `build` or `load`, which makes them
    something that a config can name."""
    package = importlib.import_module(f"cdl_jax.{folder}")
    paths = {m.name: Path(m.module_finder.path) / f"{m.name}.py" for m in pkgutil.iter_modules(package.__path__)}
    offer = re.compile(r"^def (build|load)\(", re.MULTILINE)
    return sorted(name for name, path in paths.items() if path.is_file() and offer.search(path.read_text()))


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
      UserError: there is no such module; the message names the nearest one that exists.
    """
    own = "." not in name
    path = f"cdl_jax.{folder}.{name}" if own else name
    try:
        if (name in available(folder)) if own else all(name.split(".")) and importlib.util.find_spec(path):
            return importlib.import_module(path)
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
