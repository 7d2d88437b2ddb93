"""Where data is looked for: the path that the user names, or else the usual places."""

import os
from collections.abc import Iterable
from pathlib import Path

from cdl_jax.errors import MissingDataError, UserError
from cdl_jax.runtime import paths


def search_paths() -> tuple[Path, ...]:
    """Returns the folders that are searched where no path is given.

    `$CDL_DATA` if set, `~/.cache/cdl_jax` where there is a home, `./data`.
    """
    named = [paths.resolve(os.environ["CDL_DATA"], "CDL_DATA")] if os.environ.get("CDL_DATA") else []
    if home := paths.home_folder():
        named.append(home / ".cache" / "cdl_jax")
    return (*named, Path("data"))


def find(
    path: str, names: Iterable[str], *, what: str, remedy: str, inside: Iterable[str] = (), fetch_name: str = ""
) -> Path:
    """Where the data is: `path` if a file, or a folder with an entry of `inside`; else its entry by one of `names`.

    With an empty path, the first entry by one of `names` in the usual places.

    Args:
      names: file or folder names that the data goes by.
      what: the data's name, for the message.
      remedy: what to do where it is missing, for the message.
      inside: names of entries, any of which tells that `path` is the data itself, whatever it is called.
      fetch_name: the name by which `python -m cdl_jax.fetch` gets it into a usual place; empty: it cannot.

    Raises:
      UserError: nothing is there; the message names the places.
      MissingDataError: the same, with an empty path, where it can be fetched.
    """
    names = tuple(names)
    if path:
        given = paths.resolve(path, "data.path")
        if given.is_file() or any((given / name).exists() for name in inside):
            return given
        if not given.exists():
            raise UserError(f"{what}: data.path={path!r} does not exist; {remedy}")
        places = (given,)
    else:
        places = search_paths()
    for place in places:
        for name in names:
            if (place / name).exists():
                return place / name
    looked = ", ".join(str(place) for place in places)
    message = f"{what}: none of {', '.join(names)} found in {looked}; {remedy} or set data.path"
    raise MissingDataError(message, fetch_name) if fetch_name and not path else UserError(message)
