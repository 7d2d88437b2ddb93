"""The exceptions that stand for a user's mistakes."""

from cdl_jax.runtime.console import one_line


class UserError(Exception):
    """A mistake that the user can mend: a wrong option, a missing file, damaged data.

    The message is a single line that says what is wrong, where, and what to do. The command line prints it without a
    traceback and exits with code 2.
    """

    def __init__(self, message):
        # Names out of files and archives may hold line breaks and control characters.
        super().__init__(one_line(" ".join(str(message).splitlines())))


class MissingFileError(UserError):
    """Something is not on this machine, and `python -m cdl_jax.fetch` can get it.

    Attributes:
      fetch_name: the name for the fetch command.
    """

    def __init__(self, message, fetch_name: str):
        super().__init__(message)
        self.fetch_name = fetch_name


class MissingDataError(MissingFileError):
    """A data set is not on this machine."""


class MissingWeightsError(MissingFileError):
    """Pretrained weights are not on this machine."""
