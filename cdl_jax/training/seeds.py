"""The axis of seeds of a program that trains several: what lies along it, and how a step is mapped over it.

Seeds share frozen variables and pictures. What they have of their own are the live variables and the rows of training
batches; and, where each meets the classes in an order of its own, labels and the rows of every task.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import jax
import numpy as np

from cdl_jax.data.stream import Stream


@dataclass(frozen=True, eq=False)
class SeedAxis:
    """streams: of each seed, all one where they share an order. several: without it there is no such axis."""

    streams: tuple[Stream, ...]
    several: bool

    @property
    def own_orders(self) -> bool:
        """Whether seeds meet the classes in different orders."""
        return len(set(self.streams)) > 1

    def mapped(self, function: Callable, *axes, out: int = 0) -> Callable:
        """`function`, mapped over the axis of seeds in its arguments where there is one.

        axes: of each argument; None: all share one; or a function that gives it for the argument.
        """
        if not self.several:
            return function

        def over_seeds(*arguments):
            of_each = tuple(axis(x) if callable(axis) else axis for axis, x in zip(axes, arguments, strict=True))
            return jax.vmap(function, in_axes=of_each, out_axes=out)(*arguments)

        return over_seeds

    def own_rows(self, phase) -> bool:
        """Whether each seed has rows of its own in the phase's batches, which then have the axis last."""
        return self.own_orders if phase.sequential else self.several

    def of_data(self, data: dict) -> dict:
        """For `mapped`: which axis of a source's data is that of seeds."""
        return {name: 0 if self.own_orders and name == "labels" else None for name in data}

    def of_item(self, phase):
        """For `mapped`: which axis of a phase's batches is that of seeds."""
        return self.of_plain if phase.sequential else -1

    def of_plain(self, item: dict) -> dict:
        """The same of batches that show every picture once, in order, as all of evaluation are."""
        return {name: -1 if self.own_orders and name == "rows" else None for name in item}

    def labels(self, part: str) -> np.ndarray | None:
        """int32 `[seeds, n]`: labels of all "train" or "test" pictures, where seeds differ in them, else None."""
        return np.stack([getattr(own, part).labels for own in self.streams]) if self.own_orders else None

    def rows(self, tasks: Sequence, part: str) -> np.ndarray:
        """Rows of the "train" or "test" pictures of tasks, int32 `[n]`; `[n, seeds]` where seeds differ in them."""
        of_each = [
            np.concatenate([getattr(own.tasks[task.index], part) for task in tasks])
            for own in (self.streams if self.own_orders else self.streams[:1])
        ]
        return np.stack(of_each, axis=-1) if self.own_orders else of_each[0]
