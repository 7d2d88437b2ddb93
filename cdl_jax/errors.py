"""The one exception that stands for a user's mistake."""


class UserError(Exception):
    """A mistake that the user can mend: a wrong option, a missing file, damaged data.

    The message is a single line that says what is wrong, where, and what to do. The command line prints it without a
    traceback and exits with code 2.
    """

    def __init__(self, message):
        super().__init__(" ".join(str(message).splitlines()))  # names out of files and archives may hold line breaks
