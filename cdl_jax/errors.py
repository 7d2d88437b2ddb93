"""Exceptions for the mistakes of a user."""

import traceback

from cdl_jax.runtime.console import one_line


class UserError(Exception):
    """A mistake that the user can correct.

    Examples are a wrong option, a missing file and damaged data.

    The message is one line: what is wrong, where, and what to do. The command line prints it without a traceback and
    exits with code 2.
    """

    def __init__(self, message: object):
        # Names from files and archives may contain line breaks and control characters.
        super().__init__(one_line(" ".join(str(message).splitlines())))


class MissingFileError(UserError):
    """A file is not on this machine, and `python -m cdl_jax.fetch` can download it.

    Attributes:
      fetch_name: the name for the fetch command.
    """

    def __init__(self, message: object, fetch_name: str):
        super().__init__(message)
        self.fetch_name = fetch_name


class MissingDataError(MissingFileError):
    """A data set is not on this machine."""


class MissingWeightsError(MissingFileError):
    """Pretrained weights are not on this machine."""


def one_line_traceback(error: BaseException, path: str) -> str:
    """Returns the place and the text of an error in a user's file.

    The result follows the path in a message.

    Args:
      error: an error that was raised while the file was executed.
      path: the file; of its lines in the traceback the last one counts.

    Returns:
      Text such as ", line 3: ZeroDivisionError: division by zero". The line is left out where the traceback has none.
    """
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == path]
    is_here = isinstance(error, SyntaxError) and error.filename == path  # else the text has the file and its line
    line = error.lineno if is_here else lines[-1] if lines else 0
    place = f", line {line}" if line else ""
    text = error if isinstance(error, SyntaxError) and not is_here else getattr(error, "msg", error)
    inner = error.args[0] if error.args else None
    if isinstance(inner, KeyError) and inner.args:  # an option that a ConfigDict lacks
        text = inner.args[0]
    return f"{place}: {type(error).__name__}: {text}"
