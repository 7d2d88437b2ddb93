"""Output of commands to terminals, pipes and locales that cannot take all of it."""

import functools
import logging
import os
import select
import sys
from collections.abc import Callable
from contextlib import suppress

_PIPE_CLOSED = 128 + 13  # the exit code that a shell reports after SIGPIPE


def command(main: Callable) -> Callable:
    """Wraps `main` for closed pipes, and for text that the locale cannot encode.

    In `... | head` the pipe is closed early. The command then ends without a message. SIGPIPE stays ignored, so that a
    lost network connection cannot end the process. Characters that the locale cannot encode are printed as backslash
    escapes.

    Args:
      main: a function that returns the exit code.

    Returns:
      A function with the arguments and the exit code of `main`. The exit code is 141 after a closed pipe. It is 2 after
      an error of the machine, such as a full disk of stdout.
    """

    @functools.wraps(main)
    def run(*arguments):
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):
                stream.reconfigure(errors="backslashreplace")
        logging.getLogger("cdl_jax").addFilter(_one_line_record)
        try:
            try:
                return main(*arguments)
            finally:
                if sys.stdout is not None:
                    sys.stdout.flush()
        except BrokenPipeError:
            if not _redirect_closed_streams():
                raise  # another pipe, such as that of a worker process
            return _PIPE_CLOSED
        except OSError as error:  # a disk of stdout without space, for instance
            from cdl_jax.runtime import environment

            if error.filename is not None or (line := environment.explain_error(error)) is None:
                raise
            discard_stdout()
            print(f"cdl_jax: {line}", file=sys.stderr)
            return 2

    return run


def _redirect_closed_streams() -> bool:
    """Redirects closed stdout and stderr to the null device.

    A stream is closed if its reader has closed it. The redirection is for the flush at exit.

    Returns:
      Whether at least one of them was closed.
    """
    closed = False
    for stream in (sys.stdout, sys.stderr):
        try:
            number = stream.fileno()
        except (AttributeError, OSError, ValueError):
            continue  # no stream, or a stream without a file
        poll = select.poll()
        poll.register(number, 0)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
            closed = True
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)
    return closed


def discard_stdout() -> None:
    """Redirects stdout to the null device if stdout cannot be written.

    Otherwise the flush at exit would fail again.
    """
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        with suppress(OSError):  # a stdout without a file descriptor
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, sys.stdout.fileno())
            os.close(null)


def _one_line_record(record):
    record.msg, record.args = one_line(record.getMessage()), None
    return True


def one_line(text: object) -> str:
    r"""Escapes line breaks and control characters.

    The result fits one line of a terminal or a table. A file name in UTF-8 is printed as such in any locale. In another
    locale Python represents its bytes as surrogates.

    >>> print(one_line("two\nlines"))
    two\nlines
    """
    text = str(text)
    with suppress(UnicodeEncodeError):  # a surrogate that represents no byte
        text = text.encode(errors="surrogateescape").decode(errors="surrogateescape")
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def short_repr(value: object) -> str:
    """Returns the representation of a value, cut to 60 characters.

    >>> short_repr("a" * 100)[-8:]
    'aaaaa...'
    """
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
