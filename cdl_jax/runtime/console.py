"""Keeps standard output and standard error from raising on what a terminal or a pipe cannot take."""

import functools
import logging
import os
import select
import sys
from collections.abc import Callable
from contextlib import suppress

_PIPE_CLOSED = 128 + 13  # what a shell reports for a process that SIGPIPE ended


def command(main: Callable) -> Callable:
    """Returns `main` as a command that ends quietly when its reader has gone, and prints any text.

    In `... | head` the pipe is closed early. The command then ends without a message. SIGPIPE stays ignored, so that a
    lost network connection cannot end the process. Characters that the locale cannot encode are printed as backslash
    escapes.

    Args:
      main: a function that returns the exit code.
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
            if not _dropped():
                raise  # another pipe, such as a worker's
            return _PIPE_CLOSED

    return run


def _dropped() -> bool:
    """Returns whether a reader has gone, and points its stream to the null device for the flush at exit."""
    gone = False
    for stream in (sys.stdout, sys.stderr):
        try:
            number = stream.fileno()
        except (AttributeError, OSError, ValueError):
            continue  # no stream, or one without a file
        poll = select.poll()
        poll.register(number, 0)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0)):
            gone = True
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, number)
            os.close(null)
    return gone


def discard_stdout() -> None:
    """Sends further output nowhere if stdout cannot be written, because the flush at exit would fail once more."""
    try:
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
    """Returns text for a line of a terminal or of a table: line breaks and control characters become escapes.

    A file name whose bytes are UTF-8 is shown so in any locale. In another locale Python has such bytes as surrogates.
    """
    text = str(text)
    with suppress(UnicodeEncodeError):  # a surrogate that stands for no byte
        text = text.encode(errors="surrogateescape").decode(errors="surrogateescape")
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)
