"""The exceptions that stand for a user's mistakes."""

import re

_UNPRINTABLE = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # control characters, and bytes that are not UTF-8


def printable(text: str) -> str:
    """Returns text in one line that any stream can print: line breaks as spaces, other such characters escaped."""
    line = " ".join(text.splitlines())
    return _UNPRINTABLE.sub(lambda found: found[0].encode("unicode_escape").decode(), line)


class UserError(Exception):
    """A mistake that the user can mend: a wrong option, a missing file, damaged data.

    The message is a single line that says what is wrong, where, and what to do. The command line prints it without a
    traceback and exits with code 2.
    """

    def __init__(self, message):
        super().__init__(printable(str(message)))  # names out of files and archives may hold line breaks


class Missing(UserError):
    """Something is not on this machine, and `python -m cdl_jax.fetch` can get it.

    Attributes:
      fetch_name: the name for the fetch command.
    """

    def __init__(self, message, fetch_name: str):
        super().__init__(message)
        self.fetch_name = fetch_name


class MissingData(Missing):
    """A data set is not on this machine."""


class MissingWeights(Missing):
    """Pretrained weights are not on this machine."""
