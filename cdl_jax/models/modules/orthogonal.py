"""Linear maps with orthonormal columns or rows.

A weight `[features, inputs]` is `base @ Q(raw)`. The base is a fixed orthogonal matrix. Q has orthonormal columns for
any trained `raw`; it depends only on the strictly lower triangle of `raw`. Let n >= k be the two sides of the weight.
All functions below take `raw` `[n, k]`. A wide weight is the transpose of a tall one.

torch's orthogonal parametrization, and VkD (arXiv 2403.06213).
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.scipy.linalg import expm, solve_triangular


def householder(raw: jax.Array, signs: jax.Array) -> jax.Array:
    """Computes the first k columns of a product of Householder reflections.

    The product is `H_1 ... H_k` with `H_j = I - 2 v v^T / |v|^2`, where v is `e_j` plus column j of the strictly lower
    triangle of `raw`. The product is computed in the compact WY form, O(n k^2) (Schreiber and Van Loan, 1989).

    Args:
      raw: `[n, k]`.
      signs: `[k]`, factors of the columns.

    Returns:
      `[n, k]`.
    """
    eye = jnp.eye(*raw.shape, dtype=raw.dtype)
    vectors = jnp.tril(raw, -1) + eye
    gram = vectors.T @ vectors
    inner = jnp.triu(gram, 1) + jnp.diag(jnp.diag(gram) / 2)
    return (eye - vectors @ solve_triangular(inner, vectors[: raw.shape[1]].T)) * signs


def matrix_exp(raw: jax.Array) -> jax.Array:
    """Computes the first k columns of `exp(A)`.

    A = L - L^T, where L is the strictly lower triangle of `raw` `[n, k]`.

    If 4k < n, the exponential is that of a matrix of 4k rows: A = U V^T has rank 2k, so
    `exp(A) = I + U phi(V^T U) V^T` with `phi(x) = (e^x - 1) / x`, a block of `exp([[x, 1], [0, 0]])`.

    Returns:
      `[n, k]`.
    """
    n, k = raw.shape
    if 4 * k >= n:
        return expm(_skew(raw))[:, :k]
    left, right, eye = _factors(raw)
    zero, one = jnp.zeros((2 * k, 2 * k), raw.dtype), jnp.eye(2 * k, dtype=raw.dtype)
    phi = expm(jnp.block([[right.T @ left, one], [zero, zero]]))[: 2 * k, 2 * k :]
    return eye + left @ (phi @ (right.T @ eye))


def cayley(raw: jax.Array) -> jax.Array:
    """Computes the first k columns of `(I - A/2)^-1 (I + A/2)`, A as in `matrix_exp`.

    If 4k < n, a system of 2k equations is solved: `I + U (I - V^T U / 2)^-1 V^T`.

    Returns:
      `[n, k]`.
    """
    n, k = raw.shape
    if 4 * k >= n:
        half, one = _skew(raw) / 2, jnp.eye(n, dtype=raw.dtype)
        return jnp.linalg.solve(one - half, (one + half)[:, :k])
    left, right, eye = _factors(raw)
    inner = jnp.eye(2 * k, dtype=raw.dtype) - right.T @ left / 2
    return eye + left @ jnp.linalg.solve(inner, right.T @ eye)


def skew_expm(square: jax.Array, columns: int) -> jax.Array:
    """Computes the first `columns` columns of `exp((M - M^T) / 2)`, M `[n, n]`.

    This is the map of the VkD paper.
    """
    return expm((square - square.T) / 2)[:, :columns]


MAPS = ("householder", "matrix_exp", "cayley", "skew_expm")


def default_map(features: int, inputs: int) -> str:
    """Returns torch's choice of a map.

    The map is the exponential for square weights, else Householder. The published programs use the same map.

    >>> default_map(4, 4), default_map(8, 4)
    ('matrix_exp', 'householder')
    """
    return "matrix_exp" if features == inputs else "householder"


def orthogonal_weight(
    raw: jax.Array, base: jax.Array | None, kind: str, shape: tuple[int, int], signs: jax.Array | None = None
) -> jax.Array:
    """Computes the orthogonal weight of `shape` `[features, inputs]`.

    Args:
      raw: the trained parameter, of the shape of the weight; for "skew_expm" `[n, n]`.
      base: `[n, n]`, or None for the identity.
      kind: one of `MAPS`.
      shape: (features, inputs).
      signs: `[k]`, for "householder". None, the default: the diagonal of `raw`, truncated to integers and without
        gradient, as in torch. After weight decay has moved the diagonal from -1, the weight is then always zero.

    Returns:
      `[features, inputs]`.

    >>> weight = orthogonal_weight(jnp.ones((3, 2)), None, "cayley", (3, 2))
    >>> bool(orthogonality_error(weight) < 1e-6)
    True
    """
    columns = min(shape)
    # With a lower precision such as TF32 the columns would be orthonormal to only three digits.
    with jax.default_matmul_precision("highest"):
        if kind == "skew_expm":
            tall = skew_expm(raw, columns)
        else:
            raw = raw if shape[0] >= shape[1] else raw.T
            if kind == "householder":
                signs = jax.lax.stop_gradient(jnp.trunc(jnp.diagonal(raw))) if signs is None else signs
                tall = householder(raw, signs)
            else:
                tall = {"matrix_exp": matrix_exp, "cayley": cayley}[kind](raw)
        tall = tall if base is None else base @ tall
    return tall if shape[0] >= shape[1] else tall.T


def init_raw_and_base(initial: jax.Array, completion: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the `(raw, base)` of a weight.

    The weight starts at the orthogonal factor of `initial`. The base is the Q factor (with a positive diagonal of R) of
    the tall `initial` and `completion` side by side. `raw` is minus the identity, for which every map gives the first
    columns of the identity.

    Args:
      initial: `[features, inputs]`.
      completion: `[n, n - k]`, random columns.
    """
    tall = initial if initial.shape[0] >= initial.shape[1] else initial.T
    base, triangle = jnp.linalg.qr(jnp.concatenate([tall, completion], axis=1))
    raw = -jnp.eye(*tall.shape, dtype=tall.dtype)
    return raw if tall is initial else raw.T, base * jnp.where(jnp.diagonal(triangle) < 0, -1, 1)


def init_raw(initial: jax.Array) -> jax.Array:
    """Returns the `raw` of a Householder weight without base.

    The weight starts at the orthogonal factor of `initial`.

    These are LAPACK's QR vectors. The diagonal has the signs that make the diagonal of R positive.

    Args:
      initial: `[features, inputs]`.
    """
    tall = initial if initial.shape[0] >= initial.shape[1] else initial.T
    packed, scales = jnp.linalg.qr(tall, mode="raw")
    raw, columns = packed.T, tall.shape[1]
    signs = jnp.sign(jnp.diagonal(raw)) * jnp.where(scales == 0, -1, 1)
    raw = raw.at[jnp.arange(columns), jnp.arange(columns)].set(signs)
    return raw if tall is initial else raw.T


def orthogonality_error(weight: jax.Array) -> jax.Array:
    """Computes `max |W^T W - I|` over the smaller side of W `[features, inputs]`."""
    tall = weight if weight.shape[0] >= weight.shape[1] else weight.T
    with jax.default_matmul_precision("highest"):
        return jnp.abs(tall.T @ tall - jnp.eye(tall.shape[1])).max()


class OrthogonalDense(nn.Module):
    """Maps `[..., inputs]` to `[..., features]` by `x W^T` with an orthogonal W.

    The collection "state" has the base and the signs, which are not trained.

    Attributes:
      features: number of output channels.
      kind: one of `MAPS`; "", the default: that of `default_map`.
      reference_exact: whether the signs of "householder" are torch's, so that weight decay makes the weight zero after
        one step. False, the default: they are constants of the state.
    """

    features: int
    kind: str = ""
    reference_exact: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        inputs = x.shape[-1]
        shape, kind = (self.features, inputs), self.kind or default_map(self.features, inputs)
        n, k = max(shape), min(shape)
        if kind == "skew_expm":
            return x @ orthogonal_weight(self.param("raw", _uniform(n), (n, n)), None, kind, shape).T

        def init_base():
            keys = jax.random.split(self.make_rng("params"))
            initial = _uniform(inputs)(keys[0], shape)
            return init_raw_and_base(initial, jax.random.normal(keys[1], (n, n - k)))[1]

        raw = self.param("raw", lambda key, shape: -jnp.eye(*shape), shape)
        base, signs = self.variable("state", "base", init_base).value, None
        if kind == "householder" and not self.reference_exact:
            signs = self.variable("state", "signs", lambda: -jnp.ones((k,))).value
        return x @ orthogonal_weight(raw, base, kind, shape, signs).T


def _uniform(fan_in):
    """Returns the initializer U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def _skew(raw):
    """Returns A = L - L^T `[n, n]`, L the strictly lower triangle of `raw` `[n, k]`."""
    n, k = raw.shape
    lower = jnp.pad(jnp.tril(raw, -1), ((0, 0), (0, n - k)))
    return lower - lower.T


def _factors(raw):
    """Returns U, V `[n, 2k]` with U V^T = A, and the first k columns of the identity."""
    lower, eye = jnp.tril(raw, -1), jnp.eye(*raw.shape, dtype=raw.dtype)
    return jnp.concatenate([lower, -eye], axis=1), jnp.concatenate([eye, lower], axis=1), eye
