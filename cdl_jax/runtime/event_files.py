"""Writers of metrics: `metrics.jsonl`, the record of a run, and event files for TensorBoard, a copy of it."""

import json
import logging
import os
import sys
import types
from pathlib import Path


class JsonLines:
    """A file with one JSON object per line, each with its `step`."""

    def __init__(self, path: Path):
        self._path = Path(path)
        self._path.touch()

    def write(self, values: dict) -> None:
        """Appends a line with sorted keys, and closes the file."""
        with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(values, sort_keys=True) + "\n")

    def read(self) -> list[dict]:
        """Returns all complete lines."""
        return [values for _, values in self._complete_lines()]

    def truncate(self, count: int) -> None:
        """Removes all lines after the first `count`, which an interrupted run wrote after its last checkpoint."""
        text = "".join(line + "\n" for line, _ in list(self._complete_lines())[:count])
        if text != self._text():
            temporary = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            temporary.write_text(text, encoding="utf-8", errors="backslashreplace")
            os.replace(temporary, self._path)

    def _text(self):
        return self._path.read_text(encoding="utf-8", errors="backslashreplace")

    def _complete_lines(self):
        for line in self._text().splitlines():
            try:
                yield line, json.loads(line)
            except ValueError:
                continue


class _NullWriter:
    """A writer that discards all values."""

    def write_scalars(self, step, scalars):
        pass

    def flush(self):
        pass

    def close(self):
        pass


def tensorboard_writer(folder: Path | None):
    """Returns the event file writer of clu: `write_scalars(step, {name: float})`, `flush()`, `close()`.

    TensorFlow is not imported, whether it is installed or not.

    Args:
      folder: folder of the event files. None: the writer discards all values. It also does so, after one log line, if
        clu or tensorboard is not installed.
    """
    if folder is None:
        return _NullWriter()
    try:
        _avoid_tensorflow()
        from clu import metric_writers

        return metric_writers.AsyncMultiWriter([metric_writers.SummaryWriter(str(folder))])
    except ImportError as error:
        logging.getLogger("cdl_jax").warning("no TensorBoard files: %s", error)
        return _NullWriter()


def _avoid_tensorflow():
    """Replaces the only module of clu that needs TensorFlow by the writer of tensorboard.

    TensorFlow takes seconds to import and claims GPU memory beside jax, and its installation may be broken. tensorboard
    imports it too if it can, unless there is a module `tensorboard.compat.notf`.
    """
    name = "clu.metric_writers.summary_writer"
    if name in sys.modules:
        return
    sys.modules.setdefault("tensorboard.compat.notf", types.ModuleType("tensorboard.compat.notf"))

    from tensorboard.summary import Writer

    class SummaryWriter:
        def __init__(self, logdir):
            self._writer = Writer(logdir)

        def write_scalars(self, step, scalars):
            for tag, value in scalars.items():
                self._writer.add_scalar(tag, float(value), step)

        def write_hparams(self, hparams):
            pass

        def write_texts(self, step, texts):
            pass

        def flush(self):
            self._writer.flush()

        def close(self):
            self._writer.close()

    module = types.ModuleType(name)
    module.SummaryWriter = SummaryWriter
    sys.modules[name] = module
