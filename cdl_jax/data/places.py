"""Where data is looked for: the path that the user names, or else the usual places."""

import os
from collections.abc import Iterable
from pathlib import Path

from cdl_jax.errors import UserError


def usual_places() -> tuple[Path, ...]:
    """Folders that are searched where no path is given: `$CDL_DATA` if set, `~/.cache/cdl_jax`, `./data`."""
    named = [Path(os.environ["CDL_DATA"]).expanduser()] if os.environ.get("CDL_DATA") else []
    return (*named, Path.home() / ".cache" / "cdl_jax", Path("data"))


def find(path: str, names: Iterable[str], *, what: str, remedy: str, inside: Iterable[str] = ()) -> Path:
    """Where the data is: `path` if a file, or a folder with an entry of `inside`; else its entry by one of `names`.

    With an empty path, the first entry by one of `names` in the usual places.

    Args:
      names: file or folder names that the data goes by.
      what: the data's name, for the message.
      remedy: what to do where it is missing, for the message.
      inside: names of entries, any of which tells that `path` is the data itself, whatever it is called.

    Raises:
      UserError: nothing is there; the message names the places.
    """
    names = tuple(names)
    if path:
        given = Path(path).expanduser()
        if given.is_file() or any((given / name).exists() for name in inside):
            return given
        if not given.exists():
            raise UserError(f"{what}: data.path={path!r} does not exist; {remedy}")
        places = (given,)
    else:
        places = usual_places()
    for place in places:
        for name in names:
            if (place / name).exists():
                return place / name
    looked = ", ".join(str(place) for place in places)
    raise UserError(f"{what}: none of {', '.join(names)} found in {looked}; {remedy} or set data.path")
