"""`metrics.csv`: one row for each number, which a table program or pandas reads."""

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path

from cdl_jax.run.loggers.base import POSITION, Line, RunInfo, scalars
from cdl_jax.runtime import files

FILE = "metrics.csv"
COLUMNS = (*POSITION, "metric", "value")


def open(info: RunInfo, lines: Sequence[Line]) -> "CsvLogger":
    """Writes the file with all lines so far, and returns a logger that continues it."""
    path = info.folder / FILE
    files.write_atomically(path, _csv_text([COLUMNS, *(row for line in lines for row in csv_rows(line))]))
    return CsvLogger(path)


class CsvLogger:
    """Appends the rows of lines to a CSV file."""

    def __init__(self, path: Path):
        self._path = path

    def write(self, line: Line) -> None:
        """Appends the rows of a line, and closes the file."""
        with self._path.open("a", encoding="utf-8", newline="") as file:
            file.write(_csv_text(csv_rows(line)))

    def close(self, is_finished: bool) -> None:
        """Does nothing, as the file is complete after each line."""


def csv_rows(line: Line) -> list[tuple]:
    """Returns a row for each number of a line, in the order of `COLUMNS`.

    An absent phase or epoch is empty.

    >>> csv_rows({"step": 3, "task": 0, "student/accuracy": 50.0})
    [(3, 0, '', '', 'student/accuracy', 50.0)]
    """
    position = tuple(line.get(name, "") for name in POSITION)
    return [(*position, name, value) for name, value in scalars(line).items()]


def _csv_text(rows: Iterable[Sequence]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()
