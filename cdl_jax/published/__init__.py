"""The papers' result tables as data: one file a system, `<system>.json`.

A file holds `title`, `paper`, `source` (where the numbers come from and how far they can be trusted), `keys`, `metrics`
and `cells`: a list for each published result, with the value of each key, the value of each metric, and a note on that
cell. A value may be null. `metrics` maps a column of the paper to what a run reports: `network` and `name` in its
results.json, `within`, the difference that counts as reproduced, and, where the paper counts otherwise, `times` and
`plus` (`ours = plus + times * reported`; an error is 100 - accuracy). The network "headline" is the mean over those
that the run has as its headline. The name "best" is the accuracy at the best epoch, by that headline, of the run's last
task, and "best_top5" a measure of that epoch.

A module of the system's name says with what settings the results were made, so that runs can be told to be of a cell;
without one the table can be shown, with "no config" in it, and no run is compared with it. It offers

build(**keys, reference=False) -> the config of a cell; with `reference`, with what the authors' program did besides.
NAMED: key of a cell -> key of a config, where both have the same value.
IDENTITY: keys of a config that make a run one of a cell; all others are its settings.
irrelevant(config) -> prefixes of keys without effect in a flat config.
NEEDED (optional): keys that are compared although others of their section are not.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources


@dataclass(frozen=True)
class Metric:
    """A published column as a run reports it: `plus + times * compare.Run.value(network, name)`."""

    network: str
    name: str
    within: float
    times: float = 1.0
    plus: float = 0.0


@dataclass(frozen=True)
class Cell:
    """One published result: `where` it stands (key -> value), its `values` (metric -> number), a `note` or ""."""

    where: Mapping[str, str]
    values: Mapping[str, float | None]
    note: str


@dataclass(frozen=True)
class Table:
    """All results of a system; `metrics`: column -> Metric."""

    system: str
    title: str
    paper: str
    source: str
    metrics: Mapping[str, Metric]
    cells: tuple[Cell, ...]


def systems() -> list[str]:
    """Names of the systems whose results are here."""
    files = resources.files(__name__).iterdir()
    return sorted(file.name.removesuffix(".json") for file in files if file.name.endswith(".json"))


def table(system: str) -> Table:
    """The results of a system, one of `systems()`."""
    content = json.loads(resources.files(__name__).joinpath(f"{system}.json").read_text(encoding="utf-8"))
    keys, metrics = content["keys"], {name: Metric(**metric) for name, metric in content["metrics"].items()}
    cells = []
    for row in content["cells"]:
        where, values, (note,) = row[: len(keys)], row[len(keys) : -1], row[-1:]
        cells.append(Cell(dict(zip(keys, where, strict=True)), dict(zip(metrics, values, strict=True)), note))
    return Table(system, content["title"], content["paper"], content["source"], metrics, tuple(cells))
