"""Writes event files for TensorBoard in the run's folder.

They have scalars, and the hyperparameters of the HParams plugin. `tensorboard --logdir runs` names a run by the folder
of its event files, so they lie beside results.json.
"""

import contextlib
import sys
import time
import types
from collections.abc import Sequence
from pathlib import Path

from cdl_jax.run.loggers.base import Line, RunInfo, scalars

FORMER_FOLDER = "tensorboard"  # earlier versions wrote their event files there
_PATTERN = "events.out.tfevents.*"


def open(info: RunInfo, lines: Sequence[Line]) -> "TensorBoardLogger":
    """Writes an event file with all lines so far.

    Returns a logger that continues the file. Event files of earlier processes are removed. TensorFlow is not imported,
    whether it is installed or not.
    """
    _avoid_tensorflow()
    from tensorboard.plugins.hparams import summary_v2
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    earlier = [*info.folder.glob(_PATTERN), *(info.folder / FORMER_FOLDER).glob(_PATTERN)]
    logger = TensorBoardLogger(EventFileWriter(str(info.folder)))
    logger.add(summary_v2.hparams_pb(info.hyperparameters, trial_id=info.name), 0)
    for line in lines:
        logger.add_scalars(line)
    logger.flush()
    _remove(earlier, info.folder / FORMER_FOLDER)
    return logger


class TensorBoardLogger:
    """Appends lines to an event file."""

    def __init__(self, writer):
        """Takes an open `EventFileWriter` of tensorboard."""
        self._writer = writer

    def write(self, line: Line) -> None:
        """Appends the scalars of a line, and flushes the file."""
        self.add_scalars(line)
        self.flush()

    def close(self, is_finished: bool) -> None:
        """Closes the file."""
        self._writer.close()

    def add_scalars(self, line: Line) -> None:
        """Appends the scalars of a line."""
        import numpy as np
        from tensorboard.compat.proto import summary_pb2
        from tensorboard.plugins.scalar import metadata
        from tensorboard.util import tensor_util

        kind = metadata.create_summary_metadata(display_name=None, description=None)
        values = [
            summary_pb2.Summary.Value(tag=tag, metadata=kind, tensor=tensor_util.make_tensor_proto(np.float32(value)))
            for tag, value in scalars(line).items()
        ]
        self.add(summary_pb2.Summary(value=values), line["step"])

    def add(self, summary, step: int) -> None:
        """Appends a Summary message."""
        from tensorboard.compat.proto import event_pb2

        self._writer.add_event(event_pb2.Event(wall_time=time.time(), step=step, summary=summary))

    def flush(self) -> None:
        """Waits until all events are on disk.

        Raises:
          OSError: they cannot be written.
        """
        self._writer.flush()


def _remove(paths: Sequence[Path], folder: Path) -> None:
    """Removes files, and a folder if it is empty."""
    for path in paths:
        path.unlink(missing_ok=True)
    with contextlib.suppress(OSError):
        folder.rmdir()


def _avoid_tensorflow():
    """Makes tensorboard use its own file functions instead of TensorFlow's.

    tensorboard does so if there is a module `tensorboard.compat.notf`. TensorFlow takes seconds to import, claims GPU
    memory beside jax, and may be broken.
    """
    sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf"))
