"""Where metrics go: `metrics.jsonl`, which is the record, and TensorBoard's event files, a copy."""

import json
import logging
import os
import sys
import types
from pathlib import Path


class JsonLines:
    """A file of one JSON object per line, each with the `step` it belongs to."""

    def __init__(self, path: Path):
        self._path = Path(path)
        self._path.touch()

    def write(self, values: dict) -> None:
        """Appends a line, keys sorted, and hands it to the system at once."""
        with self._path.open("a", encoding="utf-8", errors="backslashreplace") as file:
            file.write(json.dumps(values, sort_keys=True) + "\n")

    def read(self) -> list[dict]:
        """All whole lines."""
        return [values for _, values in self._whole_lines()]

    def truncate(self, count: int) -> None:
        """Removes all but the first `count` lines: what an interrupted run wrote after its last checkpoint."""
        kept = "".join(line + "\n" for line, _ in list(self._whole_lines())[:count])
        if kept != self._text():
            aside = self._path.with_name(f".{self._path.name}.{os.getpid()}")
            aside.write_text(kept, encoding="utf-8", errors="backslashreplace")
            os.replace(aside, self._path)

    def _text(self):
        return self._path.read_text(encoding="utf-8", errors="backslashreplace")

    def _whole_lines(self):
        for line in self._text().splitlines():
            try:
                yield line, json.loads(line)
            except ValueError:
                continue


class _Silent:
    """A writer that keeps nothing."""

    def write_scalars(self, step, scalars):
        pass

    def flush(self):
        pass

    def close(self):
        pass


def tensorboard_writer(folder: Path | None):
    """clu's writer of event files in `folder`: `write_scalars(step, {name: float})`, `flush()`, `close()`.

    None as folder, or an absent clu or tensorboard (one log line reports it), gives a writer that does nothing.
    TensorFlow is not imported, whether it is installed or not.
    """
    if folder is None:
        return _Silent()
    try:
        _keep_tensorflow_out()
        from clu import metric_writers

        return metric_writers.AsyncMultiWriter([metric_writers.SummaryWriter(str(folder))])
    except ImportError as error:
        logging.getLogger("cdl_jax").warning("no TensorBoard files: %s", error)
        return _Silent()


def _keep_tensorflow_out():
    """Puts tensorboard's writer in the place of clu's only module that needs TensorFlow.

    TensorFlow takes seconds to import and GPU memory beside jax, and an installation of it may be broken. tensorboard
    imports it too where it can, unless there is a module `tensorboard.compat.notf`.
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
