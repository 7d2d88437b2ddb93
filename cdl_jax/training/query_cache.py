"""What frozen networks told of a task's batches, kept on the devices for a phase that sees them again."""

from collections.abc import Callable

import jax


class Kept:
    """The answers of one task, for those of its phases whose batches bring `constants` (see `methods.base.Phase`).

    Nothing of it is in checkpoints: what is not here is asked, by the program by which it was asked before.
    """

    def __init__(self, phases, limit_mb: int):
        """
        Args:
          phases: of the method.
          limit_mb: how much is kept at most, in 2**20 bytes over all devices; what finds no place is asked again.
        """
        self._orders = [phase.order for phase in phases]
        self._last = {phase.order: index for index, phase in enumerate(phases) if phase.constants}
        self._room, self._told = limit_mb * 2**20, {}

    def told(self, phase: int, number: int, ask: Callable[[], dict]) -> dict:
        """What `ask()` gives for a phase's batch of this number, counted from its first in the task."""
        order = self._orders[phase]
        if phase == self._last[order]:
            return self._told.pop((order, number), None) or ask()
        told = ask()
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(told))
        if size <= self._room:
            self._room -= size
            self._told[order, number] = told
        return told
