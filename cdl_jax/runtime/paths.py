"""Paths of the user: from the command line, a config or the environment."""

import os
import re
from pathlib import Path
from urllib.parse import unquote

from cdl_jax.errors import UserError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
# `pathlib` merges two slashes, so a URL that was converted to a Path has one.
_REMOTE = re.compile(r"(gs|gcs|s3|http|https|hdfs|az|abfs|abfss|hf):/", re.IGNORECASE)

_LONGEST_NAME, _LONGEST_PATH = 255, 4095  # bytes that Linux accepts


def resolve(text: str | os.PathLike, what: str = "path") -> Path:
    """Returns the local path that a user's text denotes.

    `~` and `~user` become home folders, `file://` is removed, and a trailing slash has no effect. A relative path stays
    relative, so that messages show the user's text.

    Args:
      text: the user's text.
      what: the flag or config key, for messages.

    Raises:
      UserError: the text is not a path, is too long, denotes a remote file, or names the home of an unknown user.

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
    if any(len(name.encode(errors="replace")) > _LONGEST_NAME for name in text.split("/")):
        raise UserError(
            f"{what}: a name in {original[:40]!r}... is longer than {_LONGEST_NAME} bytes: choose a shorter one"
        )
    if len(text.encode(errors="replace")) > _LONGEST_PATH:
        raise UserError(
            f"{what}: the path {original[:40]!r}... is longer than {_LONGEST_PATH} bytes: choose a shorter one"
        )
    return _expand_home(text, f"{what}={original!r}")


def check_output_folder(folder: Path, what: str) -> None:
    """Checks that files can be written into a folder.

    The folder may be missing. Nothing is written.

    Args:
      folder: the folder.
      what: the flag, for messages.

    Raises:
      UserError: the folder, or the closest existing folder above it, is a file or cannot be written.
    """
    place = next(place for place in (folder, *folder.absolute().parents) if os.path.lexists(place))
    if not place.is_dir():
        raise UserError(f"{what}={folder}: {place} is not a folder: choose another folder")
    if not os.access(place, os.W_OK | os.X_OK):
        raise UserError(f"{what}={folder}: {place} cannot be written: choose another folder")


def _expand_home(text, what):
    """Returns a path with `~` and `~user` replaced by home folders.

    `what` names the path in messages.
    """
    start = text.split("/")[0]
    if start == "~" and not _home_is_usable():
        raise UserError(f"{what}: the variable HOME is not the full path of a folder: write the full path or set HOME")
    try:
        return Path(text).expanduser()
    except RuntimeError:
        if start != "~":
            raise UserError(
                f"{what}: the home folder is unknown, because no user has the name {start[1:]!r}: write the full path, "
                f"or ./{start} for a folder of that name"
            ) from None
        raise UserError(f"{what}: the home folder is unknown: write the full path or set HOME") from None


def _home_is_usable():
    """Returns whether HOME is a full path or not set.

    An empty HOME would put files into the root folder.
    """
    return os.path.isabs(os.environ.get("HOME", "/"))


def home_folder() -> Path | None:
    """Returns the user's home folder, None where it is unknown.

    That is so with an empty HOME, and without HOME and a user entry, as in some containers.
    """
    if not _home_is_usable():
        return None
    try:
        return Path.home()
    except RuntimeError:
        return None
