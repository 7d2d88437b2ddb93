"""Paths of the user: from the command line, a config or the environment."""

import os
import re
from pathlib import Path
from urllib.parse import unquote

from cdl_jax.errors import UserError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
# `pathlib` merges two slashes, so a URL that was converted to a Path has one.
_REMOTE = re.compile(r"(gs|gcs|s3|http|https|hdfs|az|abfs|abfss|hf):/", re.IGNORECASE)


def resolve(text: str | os.PathLike, what: str = "path") -> Path:
    """Returns the local path that a user's text denotes.

    `~` and `~user` become home folders, `file://` is removed, and a trailing slash has no effect. A relative path stays
    relative, so that messages show the user's text.

    Args:
      text: the user's text.
      what: the flag or config key, for messages.

    Raises:
      UserError: the text is not a path, denotes a remote file, or names the home folder of an unknown user.

    >>> str(resolve("file:///data/images/"))
    '/data/images'
    """
    if not isinstance(text, str | os.PathLike):
        raise UserError(f"{what}={text!r} is not a path: give the path of a local file or folder")
    original = text = os.fsdecode(text)
    if not text.strip():
        raise UserError(f"{what} is empty: give the path of a local file or folder")
    if "\0" in text:
        raise UserError(f"{what}={original!r} has a NUL character, which no path can have: remove it")
    if url := _URL.match(text):
        scheme, rest = url.groups()
        if scheme.lower() == "file":
            host, slash, path = rest.partition("/")
            if host not in ("", "localhost", "~") or not slash:
                raise UserError(f"{what}={original!r} names another machine: a local file is file:///folder/file")
            text = unquote(f"{host if host == '~' else ''}/{path}")
    if (url and url[1].lower() != "file") or _REMOTE.match(text):
        raise UserError(f"{what}={original!r} is a remote path, and only local paths work: copy or mount it first")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{what}={original!r}: the home folder is unknown: write the full path or set HOME") from None


def home_folder() -> Path | None:
    """Returns the user's home folder, None without HOME and without a user entry, as in some containers."""
    try:
        return Path.home()
    except RuntimeError:
        return None
