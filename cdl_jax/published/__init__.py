"""Reads the papers' result tables, one file `<system>.json` for each system.

The tables are stored as data. A file has these entries:

  title, paper: names of the table and of the paper.
  source: where the numbers come from, and how reliable they are.
  keys: names of the settings that identify a cell.
  metrics: column of the paper -> the value of a run that it is compared with, see `Metric`.
  cells: a list for each published result: the value of each key, the value of each metric (null: not published) and a
    note.

A metric's network "headline" is the mean over the networks of the run's headline. Its name "best" is the accuracy at
the best epoch of the run's last task by that headline, and "best_top5" a measure of that epoch.

A module with the system's name holds the settings of the results, so that runs can be matched with cells. A system
without a module can be shown, with "no config" as the verdict, but no run is compared with it. A module has:

  build(**choices, reference=False): returns the config of a cell; with `reference`, also with undocumented deviations
    of the authors' code.
  CONFIG_KEYS: key of a cell -> key of a config that has the same value.
  IDENTITY: keys of a config that make a run one of a cell. All other keys are settings of the run.
  COMPARED_KEYS: keys that are compared although the other keys of their section are not.
  irrelevant_prefixes(config): prefixes of keys without effect in a flat config.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Metric:
    """The value of a run that a published column is compared with.

    The compared value is `offset + scale * value`. An error, for example, has offset 100 and scale -1, because runs
    report accuracies.

    Attributes:
      network: of the run, or "headline".
      name: of a metric in results.json, or "best", "best_top5".
      tolerance: largest difference that counts as reproduced, in units of the column.
      scale: default 1.
      offset: default 0.
    """

    network: str
    name: str
    tolerance: float
    scale: float = 1.0
    offset: float = 0.0


@dataclass(frozen=True)
class Cell:
    """One published result.

    Attributes:
      choices: key -> value; the arguments of the system's `build`.
      values: column -> published number; None: not published.
      note: a remark on this result, or "".
    """

    choices: Mapping[str, str]
    values: Mapping[str, float | None]
    note: str


@dataclass(frozen=True)
class Table:
    """All published results of a system.

    Attributes:
      system, title, paper, source: see the module.
      metrics: column -> metric.
      cells: the results.
    """

    system: str
    title: str
    paper: str
    source: str
    metrics: Mapping[str, Metric]
    cells: tuple[Cell, ...]


def systems() -> list[str]:
    """Returns the names of the systems with published results.

    >>> systems()
    ['cdl', 'okddip', 'okddip_ablation', 'vkd', 'vkd_detection', 'vkd_detection_others', 'vkd_generation', 'vkd_others']
    """
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json"))


def table(system: str) -> Table:
    """Returns the results of a system, one of `systems()`.

    >>> cell = table("cdl").cells[0]
    >>> cell.choices["learner"], cell.values
    ('l2p', {'accuracy': 60.68, 'forgetting': 13.98})
    """
    content = json.loads(resources.files(__name__).joinpath(f"{system}.json").read_text(encoding="utf-8"))
    keys, metrics = content["keys"], {name: Metric(**metric) for name, metric in content["metrics"].items()}
    cells = []
    for row in content["cells"]:
        choices, values, (note,) = row[: len(keys)], row[len(keys) : -1], row[-1:]
        cells.append(Cell(dict(zip(keys, choices, strict=True)), dict(zip(metrics, values, strict=True)), note))
    return Table(system, content["title"], content["paper"], content["source"], metrics, tuple(cells))
