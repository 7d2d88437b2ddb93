"""Measures generated images by distances of features, scores and diversity.

All functions compute in float64. A distance with another network than FID's Inception is not FID: name it after its
network. `moments_distance` is biased by the number of images, `kernel_distance` is not.
"""

from dataclasses import dataclass

import numpy as np

_BLOCK = 1024  # rows of a kernel matrix in memory


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean and covariance of features.

    mean: float64 `[dim]`.
    covariance: float64 `[dim, dim]`, divided by n - 1.
    """

    mean: np.ndarray
    covariance: np.ndarray

    @staticmethod
    def from_features(features: np.ndarray) -> "Moments":
        """Returns the moments of features `[n, dim]`, n >= 2.

        >>> Moments.from_features([[0.0, 1.0], [2.0, 1.0]]).covariance.tolist()
        [[2.0, 0.0], [0.0, 0.0]]
        """
        features = np.asarray(features, np.float64)
        return Moments(features.mean(axis=0), np.atleast_2d(np.cov(features, rowvar=False)))


def frechet_distance(generated: np.ndarray, real: np.ndarray) -> float:
    """Returns the Frechet distance of normal distributions fitted to features.

    Args:
      generated: float `[n, dim]`. With fewer rows than dimensions the distance exists, and is far too large.
      real: float `[m, dim]`.
    """
    return moments_distance(Moments.from_features(generated), Moments.from_features(real))


def moments_distance(first: Moments, second: Moments) -> float:
    """Returns the Frechet distance of two normal distributions.

    It is `|m1 - m2|^2 + tr S1 + tr S2 - 2 tr (S1 S2)^(1/2)` (Heusel et al., 2017). The last trace is the sum of the
    square roots of the eigenvalues of `A S2 A`, where A is the symmetric root of S1. Unlike a root of the product
    `S1 S2`, this form is exact for singular covariances.

    >>> moments_distance(Moments(np.zeros(1), np.eye(1)), Moments(np.ones(1), 4 * np.eye(1)))
    2.0
    """
    values, vectors = np.linalg.eigh(first.covariance)
    root = (vectors * np.sqrt(values.clip(0))) @ vectors.T
    products = np.linalg.eigvalsh(root @ second.covariance @ root)
    traces = np.trace(first.covariance) + np.trace(second.covariance) - 2 * np.sqrt(products.clip(0)).sum()
    return float(((first.mean - second.mean) ** 2).sum() + traces)


def kernel_distance(generated: np.ndarray, real: np.ndarray) -> float:
    """Returns the unbiased squared MMD of two sets of features.

    The kernel is `(x . y / dim + 1)^3` (Binkowski et al., 2018). The distance may be negative. KID is its mean over
    random subsets of 1000 rows, with the features of FID's Inception.

    Args:
      generated: float `[n, dim]`, n >= 2.
      real: float `[m, dim]`, m >= 2.
    """
    x, y = np.asarray(generated, np.float64), np.asarray(real, np.float64)
    return float(_mean_of_pairs(x) + _mean_of_pairs(y) - 2 * _kernel_sum(x, y) / (len(x) * len(y)))


def _mean_of_pairs(x):
    """Returns the mean of the kernel over all pairs of different rows."""
    diagonal = (((x**2).sum(axis=1) / x.shape[1] + 1) ** 3).sum()
    return (_kernel_sum(x, x) - diagonal) / (len(x) * (len(x) - 1))


def _kernel_sum(x, y):
    return sum(((x[i : i + _BLOCK] @ y.T / x.shape[1] + 1) ** 3).sum() for i in range(0, len(x), _BLOCK))


def inception_score(probabilities: np.ndarray, splits: int = 10) -> tuple[float, float]:
    """Returns mean and standard deviation of the inception score over equal parts.

    The score is `exp(mean_x KL(p(y|x) || p(y)))` (Salimans et al., 2016). The parts are consecutive rows; rows that
    fill no part are left out. The deviation is that of the population.

    >>> inception_score(np.array([[1.0, 0.0], [0.0, 1.0]]), splits=1)
    (2.0, 0.0)

    Args:
      probabilities: float `[n, classes]`, rows of a softmax.
      splits: number of parts, default 10.
    """
    probabilities = np.asarray(probabilities, np.float64)
    size = len(probabilities) // splits
    parts = probabilities[: size * splits].reshape(splits, size, -1)
    marginal = parts.mean(axis=1, keepdims=True)
    ratio = np.divide(parts, marginal, out=np.ones_like(parts), where=parts > 0)  # 0 log 0 is 0
    scores = np.exp((parts * np.log(ratio)).sum(axis=2).mean(axis=1))
    return float(scores.mean()), float(scores.std())


def to_levels(images, xp=np):
    """Returns images in [-1, 1] as integer levels.

    >>> to_levels(np.array([-1.0, 0.0, 1.0])).tolist()
    [0, 128, 255]

    Args:
      images: float `[...]`.
      xp: jax.numpy if traced; NumPy, the default, on the host.

    Returns:
      uint8 of the same shape; halves are rounded up.
    """
    return xp.floor((xp.asarray(images, float) / 2 + 0.5) * 255 + 0.5).clip(0, 255).astype(xp.uint8)


def real_share(scores: np.ndarray) -> float:
    """Returns the share of scores above 0, of images taken for real."""
    return float((np.asarray(scores) > 0).mean())


def variance_ratio(
    generated: np.ndarray, generated_labels: np.ndarray, real: np.ndarray, real_labels: np.ndarray
) -> float:
    """Returns the within-class variance of generated features over that of real ones.

    0: one image for each class; 1: as diverse as the data. A variance is the sum of squared distances to the class
    means, divided by n minus the number of classes, and summed over dimensions.

    >>> variance_ratio([[0.0], [1.0]], [0, 0], [[0.0], [2.0]], [1, 1])
    0.25

    Args:
      generated: float `[n, dim]`.
      generated_labels: int `[n]`, the classes that were requested.
      real: float `[m, dim]`.
      real_labels: int `[m]`.
    """
    return _within_class_variance(generated, generated_labels) / _within_class_variance(real, real_labels)


def _within_class_variance(features, labels):
    classes, means = class_means(features, labels)
    centered = np.asarray(features, np.float64) - means[np.searchsorted(classes, labels)]
    return float((centered**2).sum() / max(len(centered) - len(classes), 1))


def nearest_mean_accuracy(
    generated: np.ndarray, generated_labels: np.ndarray, real: np.ndarray, real_labels: np.ndarray
) -> float:
    """Returns the share of generated images that are nearest to their class mean.

    Args:
      generated: float `[n, dim]`.
      generated_labels: int `[n]`, the classes that were requested.
      real: float `[m, dim]`, features of the class means.
      real_labels: int `[m]`.
    """
    classes, means = class_means(real, real_labels)
    x = np.asarray(generated, np.float64)
    distances = (means**2).sum(axis=1) - 2 * x @ means.T  # without the square of x, which is the same for all classes
    return float((classes[distances.argmin(axis=1)] == np.asarray(generated_labels)).mean())


def class_means(features: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns the ascending classes `[k]` and their means, float64 `[k, dim]`."""
    features, (classes, rows) = np.asarray(features, np.float64), np.unique(labels, return_inverse=True)
    sums = np.zeros((len(classes), features.shape[1]))
    np.add.at(sums, rows, features)
    return classes, sums / np.bincount(rows)[:, None]
