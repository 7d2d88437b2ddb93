"""Paths that a user gives: on the command line, in a config, in the environment."""

import os
import re
from pathlib import Path
from urllib.parse import unquote

from cdl_jax.errors import UserError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
# `pathlib` makes one slash of two, so a URL that was a Path once has a single one.
_REMOTE = re.compile(r"(gs|gcs|s3|http|https|hdfs|az|abfs|abfss|hf):/", re.IGNORECASE)


def resolve(text: str | os.PathLike, what: str = "path") -> Path:
    """Returns the local path that a user means.

    `~` and `~user` become home folders, `file://` is taken off, a trailing slash has no effect. A relative path stays
    relative, so that messages show what the user wrote.

    Args:
      text: the path as it was given.
      what: the flag or config key, for messages.

    Raises:
      UserError: no path, a remote place, or the home of an unknown user.
    """
    if not isinstance(text, str | os.PathLike):
        raise UserError(f"{what}={text!r} is no path: give the path of a local file or folder")
    given = text = os.fsdecode(text)
    if not text.strip():
        raise UserError(f"{what} is empty: give the path of a local file or folder")
    if "\0" in text:
        raise UserError(f"{what}={given!r} has a NUL character, which no path can have: remove it")
    if url := _URL.match(text):
        scheme, rest = url.groups()
        if scheme.lower() == "file":
            host, slash, place = rest.partition("/")
            if host not in ("", "localhost", "~") or not slash:
                raise UserError(f"{what}={given!r} names another machine: a local file is file:///folder/file")
            text = unquote(f"{host if host == '~' else ''}/{place}")
    if (url and url[1].lower() != "file") or _REMOTE.match(text):
        raise UserError(f"{what}={given!r} is a remote place, and only local paths work: copy or mount it first")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{what}={given!r}: the home folder is unknown, write the whole path or set HOME") from None


def home_folder() -> Path | None:
    """Returns the user's home folder; None without HOME and without an entry of the user, as in some containers."""
    try:
        return Path.home()
    except RuntimeError:
        return None
