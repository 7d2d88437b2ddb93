"""A memory that a network chooses: of each class the pictures that together are most like it.

Which rows those are cannot be planned, for it depends on weights. So a memory is an array of the run's variables, int32
`[classes, width]`: of each class, numbered as in the stream, rows of training pictures, the most typical first, and -1
behind them and where a class has not been learnt. Room that shrinks is made by reading less of each line.
"""

import numpy as np


def herd(features: np.ndarray, count: int) -> np.ndarray:
    """Which of a class's pictures to keep, int `[min(n, count)]`, in the order in which they are picked.

    Each pick brings the mean of those picked so far closest to that of all (Welling, 2009, as Rebuffi et al., 2017,
    have it for classes). Of equal ones the first; computed in float64.

    Args:
      features: of the class's pictures, `[n, dim]`, not normalised.
    """
    away = np.asarray(features, np.float64)
    away = away - away.mean(axis=0)
    distances, total, picked = (away**2).sum(axis=1), np.zeros(away.shape[1]), []
    for _ in range(min(len(away), count)):
        # |total + a|^2 without the part that is the same for all
        best = int(np.argmin(distances + 2 * away @ total))
        total, distances[best] = total + away[best], np.inf
        picked.append(best)
    return np.array(picked, int)


def update_memory(memory: np.ndarray, rows: np.ndarray, labels: np.ndarray, features: np.ndarray) -> np.ndarray:
    """The memory with the lines of all classes that occur among some pictures chosen from these.

    Args:
      memory: int32 `[classes, width]`. rows, labels: int `[n]` of the pictures. features: `[n, dim]`.
    """
    memory = memory.copy()
    for label in np.unique(labels):
        own = labels == label
        kept = rows[own][herd(features[own], memory.shape[1])]
        memory[label] = -1
        memory[label, : len(kept)] = kept
    return memory
