"""Finds data sets: at the path that the user sets, or in the search paths."""

import os
from collections.abc import Iterable
from pathlib import Path

from cdl_jax.errors import MissingDataError, UserError
from cdl_jax.runtime import paths


def search_paths() -> tuple[Path, ...]:
    """Returns the folders that are searched if no path is set.

    They are `$CDL_DATA` if set, `~/.cache/cdl_jax` if the user has a home folder, and `./data`.
    """
    folders = [paths.resolve(os.environ["CDL_DATA"], "CDL_DATA")] if os.environ.get("CDL_DATA") else []
    if home := paths.home_folder():
        folders.append(home / ".cache" / "cdl_jax")
    return (*folders, Path("data"))


def find(
    path: str, names: Iterable[str], *, what: str, remedy: str, inside: Iterable[str] = (), fetch_name: str = ""
) -> Path:
    """Finds the file or folder of a data set.

    It is `path` itself if that is a file or a folder with an entry of `inside`; else an entry of `path` with one of
    `names`. With an empty path, it is the first entry with one of `names` in the search paths.

    Args:
      path: `data.path` of the user, or empty.
      names: file or folder names of the data.
      what: name of the data, for messages.
      remedy: what to do if the data is missing, for messages.
      inside: names of entries, any of which shows that `path` is the data itself, whatever its name.
      fetch_name: name of the data for `python -m cdl_jax.fetch`; empty: it cannot be fetched.

    Raises:
      UserError: nothing is found; the message names the places.
      MissingDataError: nothing is found, `path` is empty, and the data can be fetched.
    """
    names = tuple(names)
    if path:
        root = paths.resolve(path, "data.path")
        if os.path.isfile(root) or any(os.path.exists(root / name) for name in inside):
            return root
        if not os.path.exists(root):  # also a name that is too long for the file system
            raise UserError(f"{what}: data.path={path!r} does not exist; {remedy}")
        folders = (root,)
    else:
        folders = search_paths()
    for folder in folders:
        for name in names:
            if os.path.exists(folder / name):
                return folder / name
    searched = ", ".join(str(folder) for folder in folders)
    message = f"{what}: none of {', '.join(names)} found in {searched}; {remedy} or set data.path"
    raise MissingDataError(message, fetch_name) if fetch_name and not path else UserError(message)
