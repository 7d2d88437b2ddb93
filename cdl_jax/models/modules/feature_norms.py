"""Normalizations of features before they are compared.

Features are normalized per image, per channel over the batch, or by whitening. Normalizations map `[rows, channels]` to
`[rows, channels]`, compute in float32 and have no parameters (VkD, arXiv 2403.06213).
"""

import jax
import jax.numpy as jnp
from flax import struct

from cdl_jax.errors import UserError

KINDS = ("none", "layer", "batch", "whiten_cholesky", "whiten_zca")

EPSILON = {"layer": 1e-5, "whiten_cholesky": 1e-2, "whiten_zca": 1e-2}  # defaults of the options; 0 for other kinds


def normalize(x: jax.Array, kind: str, epsilon: float | None = None) -> jax.Array:
    """Normalizes features.

    Args:
      x: `[rows, channels]`.
      kind: one of `KINDS`.
      epsilon: regularizes the variance or covariance. None, the default: the value of `EPSILON`, or 0.

    Returns:
      float32 `[rows, channels]`.

    >>> print(normalize(jnp.array([[1.0, 3.0], [5.0, 5.0]]), "layer", 0.0)[0])
    [-1.  1.]
    """
    x = x.astype(jnp.float32)
    epsilon = EPSILON.get(kind, 0.0) if epsilon is None else epsilon
    if kind == "none":
        return x
    if kind == "layer":
        return layer_norm(x, epsilon)
    return batch_norm(x, epsilon) if kind == "batch" else whiten(x, epsilon, kind.removeprefix("whiten_"))


def layer_norm(x: jax.Array, epsilon: float = 1e-5) -> jax.Array:
    """Normalizes each row to mean 0 and variance 1 over its channels.

    The result is `(x - mean) / sqrt(var + epsilon)`.
    """
    centered = x - x.mean(axis=-1, keepdims=True)
    return centered / jnp.sqrt((centered**2).mean(axis=-1, keepdims=True) + epsilon)


def batch_norm(x: jax.Array, epsilon: float = 0.0, counted: jax.Array | None = None) -> jax.Array:
    """Normalizes each channel to mean 0 and variance 1 over the rows.

    The variance is the unbiased one, divided by `rows - 1`. A constant channel becomes zero, also with `epsilon` 0.

    Args:
      x: `[rows, channels]`.
      epsilon: added to the variance, default 0.
      counted: bool `[rows]`, the rows of the statistics; other rows become 0. None, the default: all rows.

    >>> batch_norm(jnp.array([[1.0], [3.0], [9.0]]), 2.0, jnp.array([True, True, False])).ravel().tolist()
    [-0.5, 0.5, 0.0]
    """
    where = None if counted is None else counted[:, None]
    rows = len(x) if counted is None else counted.sum()
    centered = x - jnp.mean(x, axis=0, where=where)
    if where is not None:
        centered = jnp.where(where, centered, 0)
    var = (centered**2).sum(axis=0) / jnp.maximum(rows - 1, 1) + epsilon
    return centered * jnp.where(var > 0, jax.lax.rsqrt(jnp.where(var > 0, var, 1.0)), 0.0)


def covariance(x: jax.Array, epsilon: float = 0.0) -> jax.Array:
    """Computes the shrunk covariance `(1 - epsilon) C + epsilon I` over the rows.

    Returns:
      `[channels, channels]`, with C = centered `x^T x / (rows - 1)`.
    """
    centered = x - x.mean(axis=0)
    with jax.default_matmul_precision("highest"):
        unbiased = centered.T @ centered / max(len(x) - 1, 1)
    return (1 - epsilon) * unbiased + epsilon * jnp.eye(x.shape[1])


def whiten(x: jax.Array, epsilon: float, root: str = "cholesky") -> jax.Array:
    """Decorrelates the channels over the rows.

    The result is `(x - mean)` times an inverse root of the covariance.

    Args:
      x: float32 `[rows, channels]`.
      epsilon: shrinks the covariance, see `covariance`.
      root: "cholesky", the default, the transposed inverse of the lower factor; or "zca", the symmetric inverse root.
        The two results differ by a rotation.

    Raises:
      UserError: `epsilon` is 0 and there are too few rows for a covariance of full rank.
    """
    _check_rank(*x.shape, epsilon)
    centered, shrunk = x - x.mean(axis=0), covariance(x, epsilon)
    with jax.default_matmul_precision("highest"):
        if root == "zca":
            return centered @ inverse_root(shrunk)
        lower = jnp.linalg.cholesky(shrunk)
        return jax.scipy.linalg.solve_triangular(lower, centered.T, lower=True).T


@struct.dataclass
class Whitening:
    """Whitening by fixed statistics: a call returns `(x - mean) matrix`.

    Attributes:
      mean: float32 `[channels]`.
      matrix: float32 `[channels, channels]`, an inverse root of a covariance.
    """

    mean: jax.Array
    matrix: jax.Array

    @staticmethod
    def from_features(features: jax.Array, epsilon: float, root: str = "cholesky") -> "Whitening":
        """Returns the whitening by the statistics of features.

        Args:
          features: `[rows, channels]`.
          epsilon: see `covariance`.
          root: "cholesky", the default, or "zca"; see `whiten`.

        Raises:
          UserError: see `whiten`.
        """
        features = features.astype(jnp.float32)
        _check_rank(*features.shape, epsilon)
        return Whitening(features.mean(axis=0), whitening_matrix(covariance(features, epsilon), root))

    def __call__(self, x: jax.Array) -> jax.Array:
        return jnp.matmul(x.astype(jnp.float32) - self.mean, self.matrix, precision=jax.lax.Precision.HIGHEST)


def whitening_matrix(matrix: jax.Array, root: str = "cholesky") -> jax.Array:
    """Returns an inverse root W of a covariance M: `W^T M W` is the identity.

    >>> whitening_matrix(jnp.array([[4.0, 0.0], [0.0, 1.0]])).tolist()
    [[0.5, 0.0], [0.0, 1.0]]

    Args:
      matrix: M `[channels, channels]`, positive definite.
      root: "cholesky", the default, or "zca"; see `whiten`.
    """
    with jax.default_matmul_precision("highest"):
        if root == "zca":
            return inverse_root(matrix)
        lower = jnp.linalg.cholesky(matrix)
        return jax.scipy.linalg.solve_triangular(lower, jnp.eye(len(matrix), dtype=matrix.dtype), lower=True).T


def _check_rank(rows, channels, epsilon):
    """Raises a UserError for a singular covariance."""
    if not epsilon > 0 and rows <= channels:
        raise UserError(
            f"whitening {channels} channels over a batch of {rows}: their covariance is singular, so set an epsilon "
            "above 0 (for example 0.01) or a batch larger than the number of channels"
        )


@jax.custom_jvp
def inverse_root(matrix: jax.Array) -> jax.Array:
    """Computes the symmetric `M^(-1/2)` of a positive definite M `[n, n]`.

    The derivative is correct with repeated eigenvalues too.
    """
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * jax.lax.rsqrt(values)) @ vectors.T


@inverse_root.defjvp
def _inverse_root_jvp(primals, tangents):
    # The derivative of eigh divides by differences of eigenvalues; those of the root cancel (Daleckii and Krein, 1965).
    values, vectors = jnp.linalg.eigh(primals[0])
    root = jnp.sqrt(values)
    slopes = -1 / (root[:, None] * root * (root[:, None] + root))
    with jax.default_matmul_precision("highest"):
        tangent = vectors @ (slopes * (vectors.T @ tangents[0] @ vectors)) @ vectors.T
        return (vectors / root) @ vectors.T, tangent
