"""Contract of loggers, which copy the lines of metrics.jsonl.

The copies are files of other tools, or go to a service. A logger is a module with one function:

    def open(info: RunInfo, lines: Sequence[Line]) -> Logger

`lines` are all lines of the run so far, of earlier processes too. `open` adds those that the copy lacks, and repeats
none that it has. So a resumed run continues its copy, whatever an earlier process had written after its last
checkpoint.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cdl_jax import config as configs

# The keys of a line of metrics.jsonl that are no scalars.
POSITION = ("step", "task", "phase", "epoch")
Line = Mapping[str, Any]


@dataclass(frozen=True)
class RunInfo:
    """A run as loggers show it, besides its measurements.

    Attributes:
      folder: of the seed, absolute.
      workdir: the working directory, absolute; the folder's parent for a run of several seeds.
      config: the resolved config of the seed, as nested dicts.
    """

    folder: Path
    workdir: Path
    config: Mapping[str, Any]

    @property
    def name(self) -> str:
        """The name of the run; a folder `seed_<n>` is named after its parent too.

        >>> RunInfo(Path("/runs/kd/seed_1"), Path("/runs/kd"), {}).name
        'kd, seed 1'
        """
        seed = re.fullmatch(r"seed_(\d+)", self.folder.name)
        return f"{self.folder.parent.name}, seed {seed[1]}" if seed else self.folder.name

    @property
    def hyperparameters(self) -> dict[str, bool | int | float | str]:
        """The options of the config by key; tuples as text."""
        flat = configs.flatten(self.config)
        return {
            key: value if isinstance(value, bool | int | float | str) else str(value) for key, value in flat.items()
        }


class Logger(Protocol):
    """A copy of a run's lines."""

    def write(self, line: Line) -> None:
        """Adds a line.

        Raises:
          Exception: of any class; the copy then ends.
        """

    def close(self, is_finished: bool) -> None:
        """Completes the copy.

        is_finished: whether the run has trained all tasks; if not, it may be resumed.
        """


def scalars(line: Line) -> dict[str, float]:
    """Returns the numbers of a line by name.

    Names within a phase begin with the name of the phase.

    >>> scalars({"step": 3, "task": 0, "phase": "teacher", "epoch": 1, "loss": 0.5})
    {'teacher/loss': 0.5}
    >>> scalars({"step": 3, "task": 0, "student/accuracy": 50.0})
    {'student/accuracy': 50.0}
    """
    prefix = f"{line['phase']}/" if "phase" in line else ""
    return {prefix + name: float(value) for name, value in line.items() if name not in POSITION}
