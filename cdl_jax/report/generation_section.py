"""Shows generators: samples over time, and distances at each evaluation."""

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cdl_jax.report import plots, text

FOLDER = "samples"
_MAX_SHEETS = 8


def html_parts(folder: Path, results: Mapping[str, Any], lines: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns the HTML of the section of a run's generators; empty for other runs.

    Args:
      folder: of the run.
      results: the content of results.json.
      lines: the lines of metrics.jsonl.
    """
    if not results.get("lower_is_better"):
        return []
    parts = ["<h2>Generation</h2>"]
    measured = [line for line in lines if any(name.startswith("generator/") for name in line)]
    for name in dict.fromkeys(name for line in measured for name in line if name.startswith("generator/")):
        values = {line["step"]: line[name] for line in measured if name in line}
        if len(values) > 1 and not name.endswith("_floor"):
            floor = results["extra_metrics"][-1].get(f"{name}_floor") if results["extra_metrics"] else None
            plot = plots.values_over_steps(values, name, floor)
            parts.append(text.figure(plot, name, f"{name} at each evaluation{_words_of_floor(floor)}."))
    plots_of_numbers = f"<div class=row>{''.join(parts[1:])}</div>" if len(parts) > 1 else ""
    return [parts[0], plots_of_numbers, *_sheets(folder)]


def _words_of_floor(floor):
    return "" if floor is None else "; dotted: between two halves of the real test images"


def _sheets(folder):
    """Returns the HTML of sheets of samples, evenly spaced over the run.

    The first and the last sheet of the run are included.
    """
    paths = sorted((folder / FOLDER).glob("step_*.png"))
    count = min(_MAX_SHEETS, len(paths))
    chosen = [paths[round(i * (len(paths) - 1) / max(count - 1, 1))] for i in range(count)]
    figures = [
        f'<figure><img src="data:image/png;base64,{base64.b64encode(path.read_bytes()).decode("ascii")}" '
        f'alt="{path.stem}"><figcaption>{path.stem}</figcaption></figure>'
        for path in chosen
    ]
    caption = "<p class=quiet>Samples: a row for each class, the same noise in every sheet.</p>"
    return [caption, f"<div class=row>{''.join(figures)}</div>"] if figures else []
