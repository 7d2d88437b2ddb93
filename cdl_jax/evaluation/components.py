"""Computes principal components of features.

Distances of few images are measured in these components.
"""

import numpy as np


def principal_components(features: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean and the first principal components of features.

    >>> mean, components = principal_components(np.array([[1.0, 0.0], [3.0, 0.0]]), 1)
    >>> mean.tolist(), np.abs(components).tolist()
    ([2.0, 0.0], [[1.0], [0.0]])

    Args:
      features: `[rows, dim]`.
      count: number of components.

    Returns:
      The mean `[dim]` and the components `[dim, count]`.
    """
    mean = features.mean(axis=0)
    _, _, rows = np.linalg.svd(features - mean, full_matrices=False)
    return mean, rows[:count].T
