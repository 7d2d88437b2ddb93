"""Decides when a task ends before its last epoch.

The decision follows from the accuracies of the task's epochs.
"""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Decision:
    """Holds a decision about the next epoch.

    Attributes:
      stop: whether the task ends before the next epoch.
      keep: index of the accuracy whose weights are restored at a stop; None: the first accuracy is the best.
      best: the accuracy that later ones must exceed.
    """

    stop: bool
    keep: int | None
    best: float


def decide(accuracies: Sequence[float], patience: int, margin: float) -> Decision:
    """Decides before epoch `len(accuracies) - 1`, as DKT's library does.

    Weights are kept where their accuracy exceeds the best one, even by less than `margin`; the last ones win. Only an
    accuracy that exceeds the best by more than `margin` becomes the best and restarts the wait.

    >>> decide([50.0, 60.0, 59.0, 58.0], patience=2, margin=0.0)
    Decision(stop=True, keep=1, best=60.0)

    Args:
      accuracies: measured before each epoch up to this one, in percent; at least one.
      patience: number of epochs without a new best accuracy.
      margin: in points.
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
