"""Selects images of each class whose mean feature is closest to the class mean.

The selection depends on a network's weights, so it cannot be planned. The memory is an array of the run's variables,
int32 `[classes, width]`. Row c lists training images of class c of the stream, the most typical first. -1 fills the
rest of a row, and the rows of classes that have not been learned. A memory that shrinks uses fewer rows per class.
"""

import numpy as np


def herd(features: np.ndarray, count: int) -> np.ndarray:
    """Picks images one by one, so that their mean stays closest to the mean of all.

    Ties go to the first image; computed in float64. Source: Welling, 2009, as in Rebuffi et al., 2017 (iCaRL).

    >>> herd(np.array([[0.0], [4.0], [2.5]]), 2).tolist()
    [2, 0]

    Args:
      features: float `[n, dim]`, of the images of one class, not normalized.
      count: number of images to pick.

    Returns:
      int `[min(n, count)]`, indices in the order in which they are picked.
    """
    centered = np.asarray(features, np.float64)
    centered = centered - centered.mean(axis=0)
    distances, total, picked = (centered**2).sum(axis=1), np.zeros(centered.shape[1]), []
    for _ in range(min(len(centered), count)):
        # |total + a|^2 without the part that is the same for all
        best = int(np.argmin(distances + 2 * centered @ total))
        total, distances[best] = total + centered[best], np.inf
        picked.append(best)
    return np.array(picked, int)


def update_memory(memory: np.ndarray, rows: np.ndarray, labels: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Replaces the memory of each class that occurs in `labels`.

    The new rows of a class are the `herd` of its images here.

    Args:
      memory: int32 `[classes, width]`.
      rows: int `[n]`, rows of the training split.
      labels: int `[n]`, classes of the stream.
      features: float `[n, dim]`.

    Returns:
      A new memory, int32 `[classes, width]`.
    """
    memory = memory.copy()
    for label in np.unique(labels):
        member = labels == label
        selected = rows[member][herd(features[member], memory.shape[1])]
        memory[label] = -1
        memory[label, : len(selected)] = selected
    return memory
