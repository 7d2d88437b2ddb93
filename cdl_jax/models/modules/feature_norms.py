"""Normalisations of features before they are compared: per picture, per channel over the batch, or whitening.

All take and give `[rows, channels]`, compute in float32 and have no parameters (VkD, arXiv 2403.06213).
"""

import jax
import jax.numpy as jnp

from cdl_jax import plugins
from cdl_jax.errors import UserError

KINDS = ("none", "layer", "batch", "whiten_cholesky", "whiten_zca")

EPSILON = {"layer": 1e-5, "whiten_cholesky": 1e-2, "whiten_zca": 1e-2}  # where options say nothing


def normalize(x: jax.Array, kind: str, epsilon: float | None = None) -> jax.Array:
    """`x` normalised by one of `KINDS`; `epsilon` None is that of `EPSILON`, or 0."""
    x = x.astype(jnp.float32)
    epsilon = EPSILON.get(kind, 0.0) if epsilon is None else epsilon
    if kind == "none":
        return x
    if kind == "layer":
        return layer(x, epsilon)
    return batch(x, epsilon) if kind == "batch" else whiten(x, epsilon, kind.removeprefix("whiten_"))


def check(kind: str, key: str) -> None:
    """Refuses a normalisation that does not exist.

    Raises:
      UserError: names the config `key` and the kinds.
    """
    if kind not in KINDS:
        raise UserError(f"{key}={kind!r} is no normalisation of features: {plugins.did_you_mean(kind, KINDS)}")


def layer(x, epsilon: float = 1e-5):
    """Each row to mean 0 and variance 1 over its channels, `(x - mean) / sqrt(var + epsilon)`."""
    centred = x - x.mean(axis=-1, keepdims=True)
    return centred / jnp.sqrt((centred**2).mean(axis=-1, keepdims=True) + epsilon)


def batch(x, epsilon: float = 0.0):
    """Each channel to mean 0 and variance 1 over the rows, by the variance that divides by `rows - 1`.

    A channel that does not vary becomes zero, without `epsilon` too.
    """
    centred = x - x.mean(axis=0)
    var = (centred**2).sum(axis=0) / max(len(x) - 1, 1) + epsilon
    return centred * jnp.where(var > 0, jax.lax.rsqrt(jnp.where(var > 0, var, 1.0)), 0.0)


def covariance(x, epsilon: float = 0.0):
    """`(1 - epsilon) C + epsilon I` `[channels, channels]`, C = centred `x^T x / (rows - 1)`."""
    centred = x - x.mean(axis=0)
    with jax.default_matmul_precision("highest"):
        found = centred.T @ centred / max(len(x) - 1, 1)
    return (1 - epsilon) * found + epsilon * jnp.eye(x.shape[1])


def whiten(x, epsilon: float, root: str = "cholesky"):
    """Channels made uncorrelated over the rows: `(x - mean)` times an inverse root of their `covariance`.

    root: "cholesky", the transposed inverse of its lower factor, or "zca", the symmetric one. Results differ by a
      rotation.

    Raises:
      UserError: `epsilon` is 0 although the rows are too few for a covariance of full rank.
    """
    rows, channels = x.shape
    if not epsilon > 0 and rows <= channels:
        raise UserError(
            f"whitening {channels} channels over a batch of {rows}: their covariance is singular, so set an epsilon "
            "above 0 (0.01, say) or a batch larger than the number of channels"
        )
    centred, found = x - x.mean(axis=0), covariance(x, epsilon)
    with jax.default_matmul_precision("highest"):
        if root == "zca":
            return centred @ inverse_root(found)
        lower = jnp.linalg.cholesky(found)
        return jax.scipy.linalg.solve_triangular(lower, centred.T, lower=True).T


@jax.custom_jvp
def inverse_root(matrix):
    """The symmetric `M^(-1/2)` of a positive definite M; its derivative holds with repeated eigenvalues too."""
    values, vectors = jnp.linalg.eigh(matrix)
    return (vectors * jax.lax.rsqrt(values)) @ vectors.T


@inverse_root.defjvp
def _inverse_root_jvp(primals, tangents):
    # eigh's own derivative divides by differences of eigenvalues; those of the root cancel (Daleckii and Krein, 1965).
    values, vectors = jnp.linalg.eigh(primals[0])
    root = jnp.sqrt(values)
    slopes = -1 / (root[:, None] * root * (root[:, None] + root))
    with jax.default_matmul_precision("highest"):
        tangent = vectors @ (slopes * (vectors.T @ tangents[0] @ vectors)) @ vectors.T
        return (vectors / root) @ vectors.T, tangent
