"""Shows the progress of a run.

It is a bar in a terminal or a notebook, and lines of a log elsewhere.
"""

import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress

import numpy as np

INTERVAL = 60.0  # seconds between two lines of a log
_LOSS = ", loss "


def show(total: int, initial: int, *, primary: bool):
    """Returns a progress display.

    The display is a context manager with tqdm's `update`, `set_postfix_str` and `total`.

    Args:
      total: steps of the run.
      initial: steps that an earlier process has done.
      primary: whether this process is the one that reports; other processes show nothing.
    """
    if primary and not sys.stderr.isatty() and not is_notebook():
        return Lines(total, initial)
    from tqdm.auto import tqdm  # here, because it finds a notebook when it is imported

    return tqdm(total=total, initial=initial, unit="step", disable=not primary)


def is_notebook() -> bool:
    """Returns whether this process is the kernel of a Jupyter notebook."""
    shell = getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)()
    return "IPKernelApp" in getattr(shell, "config", {})


def position_text(task: int, phase: str, means: Mapping[str, np.ndarray]) -> str:
    """Returns the end of a line of progress.

    The text has task, phase, and the mean loss if the phase has one.

    Args:
      task: index of the task.
      phase: name of the phase.
      means: mean of each metric, float `[seeds]`.

    >>> position_text(0, "student", {"loss": np.array([1.0, 2.0])}), position_text(0, "student_fit", {})
    ('task 0, student, loss 1.500', 'task 0, student_fit')
    """
    return f"task {task}, {phase}" + (f"{_LOSS}{np.mean(means['loss']):.3f}" if "loss" in means else "")


class Lines:
    """Prints the progress of a run as lines to stderr.

    A line is printed when a phase begins, at least every `interval` seconds, and at the end. A thread prints, so that
    lines come while a step compiles or a long evaluation runs.
    """

    def __init__(self, total: int, initial: int, interval: float = INTERVAL):
        self.total, self.done, self.initial, self.interval = total, initial, initial, interval
        self.postfix, self.phase = "", ""
        self._printed: tuple[int, str] | None = None  # steps and postfix of the last line
        self._begun, self._ended = time.monotonic(), threading.Event()
        self._thread = threading.Thread(target=self._repeat, name="progress", daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._ended.set()
        self._thread.join()
        if self._printed != (self.done, self.postfix):
            self._print()

    def update(self, steps: int) -> None:
        """Counts steps that were done."""
        self.done += steps

    def set_postfix_str(self, text: str) -> None:
        """Sets what a line ends with, such as task, phase and loss."""
        phase, self.postfix = text.partition(_LOSS)[0], text
        if phase != self.phase:
            self.phase = phase
            self._print()

    def line(self) -> str:
        """Returns the line that is due now."""
        seconds = time.monotonic() - self._begun
        rate = (self.done - self.initial) / seconds if seconds else 0.0
        share = 100 * self.done / self.total if self.total else 100.0
        remaining = f", {(self.total - self.done) / rate / 60:.0f} min left" if rate else ""
        text = f"step {self.done} of {self.total} ({share:.0f} %), {rate:.2f} steps/s{remaining}; {self.postfix}"
        return text.rstrip("; ")

    def _repeat(self):
        while not self._ended.wait(self.interval):
            self._print()

    def _print(self):
        self._printed = self.done, self.postfix
        with suppress(OSError):  # a log that is full or closed must not end the run
            print(self.line(), file=sys.stderr, flush=True)
