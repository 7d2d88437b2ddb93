"""Passes lines to the loggers of a run, each on a thread of its own.

A step never waits for a disk or a service. A logger that fails ends with one warning, and the run continues.
"""

import importlib.util
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from functools import partial

import jax

from cdl_jax.errors import UserError
from cdl_jax.run.loggers import csv_file, mlflow_run, tensorboard_events, wandb_run
from cdl_jax.run.loggers.base import Line, Logger, RunInfo

CLOSE_SECONDS = 60.0  # longest wait for a logger at the end of a process

LOGGERS = {"tensorboard": tensorboard_events, "csv": csv_file, "wandb": wandb_run, "mlflow": mlflow_run}
# Package that a logger of its name imports -> what pip installs, in the folder of this project.
_PACKAGES = {"tensorboard": "tensorboard", "wandb": "'.[wandb]'", "mlflow": "'.[mlflow]'"}


def check(names: Sequence[str]) -> None:
    """Checks that loggers can be used.

    Their packages are installed, and Weights & Biases has an account or is offline.

    Raises:
      UserError: names what is missing.
    """
    for name in names:
        if name in _PACKAGES and importlib.util.find_spec(name) is None:
            raise UserError(
                f"config.log.to={tuple(names)!r}: the package {name} is not installed: pip install {_PACKAGES[name]}, "
                f"or leave {name!r} out"
            )
    if "wandb" in names and jax.process_index() == 0:
        wandb_run.check_login()


def open_all(names: Sequence[str], info: RunInfo, lines: Sequence[Line]) -> list["BackgroundLogger"]:
    """Returns the running loggers of a run.

    Args:
      names: of the loggers, the value of `config.log.to`.
      info: the run.
      lines: all lines of the run so far.
    """
    return [BackgroundLogger(name, partial(LOGGERS[name].open, info, tuple(lines))) for name in dict.fromkeys(names)]


class BackgroundLogger:
    """A logger on a thread of its own."""

    def __init__(self, name: str, open_logger: Callable[[], Logger]):
        """Starts the thread, which opens the logger.

        Args:
          name: for the warning.
          open_logger: returns the logger.
        """
        self.name, self.failed = name, False
        self._queue: queue.SimpleQueue[Line | bool] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, args=(open_logger,), name=f"logger {name}", daemon=True)
        self._thread.start()

    def write(self, line: Line) -> None:
        """Adds a line."""
        if not self.failed:
            self._queue.put(dict(line))

    def close(self, is_finished: bool) -> None:
        """Completes the copy, and waits at most `CLOSE_SECONDS` for it.

        is_finished: see `Logger.close`.
        """
        self._queue.put(is_finished)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            self._warn(f"not complete after {CLOSE_SECONDS:.0f} s")

    def _work(self, open_logger):
        try:
            logger = open_logger()
            while not isinstance(item := self._queue.get(), bool):
                logger.write(item)
            logger.close(item)
        except Exception as error:  # each package has its own classes of errors
            self.failed = True
            self._warn(" ".join(f"{type(error).__name__}: {error}".split()))

    def _warn(self, reason):
        logging.getLogger("cdl_jax").warning(
            "the logger %s has stopped (%s); the run continues, and metrics.jsonl and results.json have all numbers",
            self.name, reason,
        )  # fmt: skip
