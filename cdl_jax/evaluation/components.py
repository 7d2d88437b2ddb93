"""Computes principal components of features, in which distances of few images are measured."""

import numpy as np


def principal_components(features: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns the mean `[dim]` and the first principal components `[dim, count]` of features `[rows, dim]`.

    >>> mean, components = principal_components(np.array([[1.0, 0.0], [3.0, 0.0]]), 1)
    >>> mean.tolist(), np.abs(components).tolist()
    ([2.0, 0.0], [[1.0], [0.0]])
    """
    mean = features.mean(axis=0)
    _, _, rows = np.linalg.svd(features - mean, full_matrices=False)
    return mean, rows[:count].T
