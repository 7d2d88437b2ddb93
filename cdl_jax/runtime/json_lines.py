"""Files of one JSON object a line, such as metrics.jsonl."""

import json
import os
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
        """Removes all lines after the first `count`.

        An interrupted run wrote them after its last checkpoint.
        """
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
