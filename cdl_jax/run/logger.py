"""Writes the files of a run that are no checkpoints: metrics, TensorBoard events, results and the report."""

import itertools
import json
import logging
import time
from pathlib import Path

from cdl_jax.report import detection_section, run_page
from cdl_jax.runtime import event_files, files

REPORT_INTERVAL = 60.0  # seconds between the reports of an unfinished run


class RunLogger:
    """Writes metrics.jsonl, TensorBoard events, results.json and report.html of one seed."""

    def __init__(self, folder: Path, num_lines: int, options):
        """Opens the files.

        Args:
          folder: of the seed.
          num_lines: lines of metrics.jsonl that the checkpoint has; later lines are removed.
          options: the config section `log`.
        """
        self.folder, self._draws_report = folder, options.report
        self._lines = event_files.JsonLines(folder / "metrics.jsonl")
        self._lines.truncate(num_lines)
        self._board = event_files.tensorboard_writer(folder / "tensorboard" if options.tensorboard else None)
        self._last_report = time.monotonic()

    def log(self, step: int, values: dict[str, float], place: dict) -> None:
        """Writes a line of metrics.

        place: where in the run the line belongs: `task`, and within a task `phase` and `epoch`.
        """
        self._lines.write({"step": step, **place, **values})
        phase = f"{place['phase']}/" if "phase" in place else ""
        self._board.write_scalars(step, {phase + name: value for name, value in values.items()})

    def write_results(self, content: dict, detections: dict | None = None) -> None:
        """Writes results.json, then report.html: at most once a minute, because plots take seconds, and at the end.

        Args:
          content: of results.json.
          detections: content of detections.json, which is written first; None: there is no such file.
        """
        if detections is not None:
            files.write_atomically(self.folder / detection_section.FILE, json.dumps(detections) + "\n")
        parts = json.JSONEncoder(indent=1).iterencode(content)  # one string of a long run takes many times the memory
        files.write_atomically(self.folder / "results.json", itertools.chain(parts, "\n"))
        is_due = content["status"] == "finished" or time.monotonic() > self._last_report + REPORT_INTERVAL
        if self._draws_report and is_due:
            draw_report(self.folder, content)
            self._last_report = time.monotonic()

    def close(self) -> None:
        """Closes the TensorBoard writer."""
        self._board.close()


def draw_report(folder: Path, content: dict) -> None:
    """Writes report.html. A failure is a warning, because all that it shows is in the other files.

    content: of results.json.
    """
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        lines = event_files.JsonLines(folder / "metrics.jsonl").read()
        sections = detection_section.html_parts(content, detection_section.read(folder))
        run_page.write_report(folder / "report.html", content, lines, stored, sections)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        logging.getLogger("cdl_jax").warning(
            "report.html is not drawn (%s); results.json is complete, and the same command draws it again", reason
        )


def report_is_current(folder: Path) -> bool:
    """Returns whether report.html shows results.json; `--mode=analyze` draws the report again with its analysis."""
    page, results = folder / "report.html", folder / "results.json"
    if not page.exists() or (folder / "analysis.json").exists():
        return page.exists()
    return page.stat().st_mtime_ns >= results.stat().st_mtime_ns
