"""Defines the axis of seeds of a run that trains several seeds in one program.

All seeds share images and frozen variables. Each seed has its own mutable variables and its own batch order. With
per-seed class orders, each seed also has its own labels and its own rows of every task.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from cdl_jax.data.stream import Stream, Task
from cdl_jax.methods.base import Phase


@dataclass(frozen=True, eq=False)
class SeedAxis:
    """Describes the axis of seeds.

    Attributes:
      streams: of each seed; one object for all where they share a class order.
      vectorized: whether there is such an axis; without it there is one seed.
    """

    streams: tuple[Stream, ...]
    vectorized: bool

    @property
    def per_seed_classes(self) -> bool:
        """Returns whether the seeds have different class orders."""
        return len(set(self.streams)) > 1

    def vmap(self, function: Callable, *axes, out: int = 0) -> Callable:
        """Maps a function over the axis of seeds, or returns it unchanged without one.

        axes: of each argument: a number, None (shared), or a function `argument -> axes`.
        """
        if not self.vectorized:
            return function

        def over_seeds(*arguments):
            in_axes = tuple(axis(x) if callable(axis) else axis for axis, x in zip(axes, arguments, strict=True))
            return jax.vmap(function, in_axes=in_axes, out_axes=out)(*arguments)

        return over_seeds

    def unstack(self, tree) -> list:
        """Splits a tree with a leading axis of seeds into one tree a seed."""
        if not self.vectorized:
            return [tree]
        return [jax.tree.map(lambda x, i=i: x[i], tree) for i in range(len(self.streams))]

    def per_seed_rows(self, phase: Phase) -> bool:
        """Returns whether each seed has rows of its own in the phase's batches.

        Such rows are on the last axis of the batches.
        """
        return self.per_seed_classes if phase.sequential else self.vectorized

    def data_axes(self, data: dict) -> dict:
        """Returns the axes of seeds of a loader's data, for `vmap`."""
        return {name: 0 if self.per_seed_classes and name == "labels" else None for name in data}

    def batch_axes(self, phase: Phase):
        """Returns the axes of seeds of a phase's batches, for `vmap`."""
        return self.sequential_axes if phase.sequential else -1

    def sequential_axes(self, batch: dict) -> dict:
        """Returns the axes of seeds of a batch in sequential order, for `vmap`.

        Batches of evaluation have sequential order.
        """
        return {name: -1 if self.per_seed_classes and name == "rows" else None for name in batch}

    def labels(self, part: str) -> np.ndarray | None:
        """Returns the labels of all "train" or "test" images, int32 `[seeds, n]`.

        None: all seeds share the labels.
        """
        if not self.per_seed_classes:
            return None
        return np.stack([_split(stream, part).labels for stream in self.streams])

    def rows(self, tasks: Sequence[Task], part: str) -> np.ndarray:
        """Returns the rows of the "train" or "test" images of tasks.

        Returns:
          int32 `[n]`, or `[n, seeds]` with per-seed class orders. A row that several tasks share occurs once.
        """
        rows = [
            _distinct(np.concatenate([_rows(stream.tasks[task.index], part) for task in tasks]))
            for stream in (self.streams if self.per_seed_classes else self.streams[:1])
        ]
        return np.stack(rows, axis=-1) if self.per_seed_classes else rows[0]


def _distinct(rows):
    """Returns the rows in the order of their first occurrence."""
    _, positions = np.unique(rows, return_index=True)
    return rows[np.sort(positions)]


def _split(stream, part):
    return {"train": stream.train, "test": stream.test}[part]


def _rows(task, part):
    return {"train": task.train, "test": task.test}[part]
