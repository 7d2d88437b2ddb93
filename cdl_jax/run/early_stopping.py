"""When a task has been learnt long enough, from the accuracies that its epochs showed."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Decision:
    """What follows from the accuracies seen until now.

    stop: whether the next epoch must not begin. keep: place among the accuracies of the weights to go on with if it
    stops; None while the first one is unsurpassed. best: the accuracy that later ones must surpass.
    """

    stop: bool
    keep: int | None
    best: float


def decide(accuracies: Sequence[float], patience: int, margin: float) -> Decision:
    """What DKT's library decides before epoch `len(accuracies) - 1`, the accuracies being those seen before each epoch
    up to it, at least one.

    Weights above the best accuracy are kept even where they exceed it by less than `margin`, the last ones win; but
    only more than that moves the best accuracy, and with it the wait of `patience` epochs.
    """
    best, since, keep = accuracies[0], 0, None
    for epoch, accuracy in enumerate(accuracies[1:], 1):
        if accuracy > best:
            keep = epoch
            if accuracy - best > margin:
                best, since = accuracy, epoch
        if epoch - since >= patience:
            return Decision(True, keep, best)
    return Decision(False, keep, best)
