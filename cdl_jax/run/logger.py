"""Writes the files of a run that are no checkpoints.

They are metrics and their copies for other tools, results, and the report.
"""

import io
import itertools
import json
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cdl_jax.report import detection_section, generation_section, run_page
from cdl_jax.run.loggers import background
from cdl_jax.run.loggers.base import RunInfo
from cdl_jax.runtime import files, json_lines

REPORT_INTERVAL = 60.0  # seconds between the reports of an unfinished run


class RunLogger:
    """Writes the metrics, results and report of one seed.

    Metrics are copied for other tools.
    """

    def __init__(self, info: RunInfo, num_lines: int, options, task_scalars: Sequence[Mapping[str, float]] = ()):
        """Opens the files.

        Args:
          info: the run and its folder.
          num_lines: lines of metrics.jsonl that the checkpoint has; later lines are removed.
          options: the config section `log`.
          task_scalars: of each finished task, see `results.task_scalars`.
        """
        self.folder, self._draws_report, self._is_finished = info.folder, options.report, False
        self._lines = json_lines.JsonLines(info.folder / "metrics.jsonl")
        self._lines.truncate(num_lines)
        lines = [_with_task_scalars(line, task_scalars) for line in self._lines.read()] if options.to else []
        self._loggers = background.open_all(options.to, info, lines)
        self._last_report = time.monotonic()

    def log(
        self, step: int, values: dict[str, float], place: dict, task_scalars: Mapping[str, float] | None = None
    ) -> None:
        """Writes a line of metrics.

        Args:
          step: of the run.
          values: the line's numbers by name.
          place: where in the run the line belongs: `task`, and within a task `phase` and `epoch`.
          task_scalars: of a line after a task, what loggers show besides it.
        """
        line = {"step": step, **place, **values}
        self._lines.write(line)
        for logger in self._loggers:
            logger.write(line | dict(task_scalars or {}))

    def write_results(self, content: dict, detections: dict | None = None) -> None:
        """Writes results.json, then report.html if it is due.

        The report is written at most once a minute, because plots take seconds, and at the end.

        Args:
          content: of results.json.
          detections: content of detections.json, which is written first; None: there is no such file.
        """
        if detections is not None:
            files.write_atomically(self.folder / detection_section.FILE, json.dumps(detections) + "\n")
        parts = json.JSONEncoder(indent=1).iterencode(content)  # one string of a long run takes many times the memory
        files.write_atomically(self.folder / "results.json", itertools.chain(parts, "\n"))
        self._is_finished = content["status"] == "finished"
        is_due = self._is_finished or time.monotonic() > self._last_report + REPORT_INTERVAL
        if self._draws_report and is_due:
            draw_report(self.folder, content)
            self._last_report = time.monotonic()

    def write_sheet(self, step: int, sheet: np.ndarray) -> None:
        """Writes samples of a generator as `samples/step_<step>.png`.

        Args:
          step: of the run.
          sheet: uint8 `[height, width, 3]`.
        """
        from PIL import Image

        content = io.BytesIO()
        Image.fromarray(sheet).save(content, "PNG")
        (self.folder / generation_section.FOLDER).mkdir(exist_ok=True)
        files.write_atomically(self.folder / generation_section.FOLDER / f"step_{step:08d}.png", content.getvalue())

    def close(self) -> None:
        """Closes the loggers."""
        for logger in self._loggers:
            logger.close(self._is_finished)


def _with_task_scalars(line, task_scalars):
    """Returns a line with the further scalars that loggers get after a task."""
    if "phase" in line or line["task"] >= len(task_scalars):
        return line
    return line | dict(task_scalars[line["task"]])


def draw_report(folder: Path, content: dict) -> None:
    """Writes report.html.

    A failure is a warning, because the other files have all that the report shows.

    content: of results.json.
    """
    try:
        stored = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        lines = json_lines.JsonLines(folder / "metrics.jsonl").read()
        sections = detection_section.html_parts(content, detection_section.read(folder))
        sections += generation_section.html_parts(folder, content, lines)
        run_page.write_report(folder / "report.html", content, lines, stored, sections)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        logging.getLogger("cdl_jax").warning(
            "report.html is not drawn (%s); results.json is complete, and the same command draws it again", reason
        )


def report_is_current(folder: Path) -> bool:
    """Returns whether report.html shows results.json.

    A report with an analysis counts as current, because `--mode=analyze` draws the report again with its analysis.
    """
    page, results = folder / "report.html", folder / "results.json"
    if not page.exists() or (folder / "analysis.json").exists():
        return page.exists()
    return page.stat().st_mtime_ns >= results.stat().st_mtime_ns
