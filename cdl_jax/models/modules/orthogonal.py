"""Linear maps with orthonormal columns (or rows), after torch's orthogonal parametrisation and VkD (arXiv 2403.06213).

A weight `[features, inputs]` is `base @ Q(raw)`: the base is a fixed orthogonal matrix, and Q has orthonormal columns
whatever the trained `raw` is. Of `raw` the strictly lower triangle alone matters. With n >= k the two sides in order of
size, all functions below take `raw` `[n, k]`; a wide weight is the transpose of a tall one.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.scipy.linalg import expm, solve_triangular

from cdl_jax import plugins
from cdl_jax.errors import UserError


def householder(raw: jax.Array, signs: jax.Array) -> jax.Array:
    """The first k columns of the reflections' product `H_1 ... H_k`, column j times `signs[j]`: `[n, k]`.

    `H_j = I - 2 v v^T / |v|^2`, v being `e_j` plus column j of the strictly lower triangle. All of them at once in the
    compact WY form, O(n k^2) (Schreiber and Van Loan, 1989).
    """
    eye = jnp.eye(*raw.shape, dtype=raw.dtype)
    vectors = jnp.tril(raw, -1) + eye
    gram = vectors.T @ vectors
    inner = jnp.triu(gram, 1) + jnp.diag(jnp.diag(gram) / 2)
    return (eye - vectors @ solve_triangular(inner, vectors[: raw.shape[1]].T)) * signs


def matrix_exp(raw: jax.Array) -> jax.Array:
    """The first k columns of `exp(A)`, A = L - L^T with L the strictly lower triangle in n columns: `[n, k]`.

    Where k is small beside n the exponential is one of 4k rows: A = U V^T of rank 2k, so `exp(A) = I + U phi(V^T U)
    V^T` with `phi(x) = (e^x - 1) / x`, a block of `exp([[x, 1], [0, 0]])`.
    """
    n, k = raw.shape
    if 4 * k >= n:
        return expm(_skew(raw))[:, :k]
    left, right, eye = _factors(raw)
    zero, one = jnp.zeros((2 * k, 2 * k), raw.dtype), jnp.eye(2 * k, dtype=raw.dtype)
    phi = expm(jnp.block([[right.T @ left, one], [zero, zero]]))[: 2 * k, 2 * k :]
    return eye + left @ (phi @ (right.T @ eye))


def cayley(raw: jax.Array) -> jax.Array:
    """The first k columns of `(I - A/2)^-1 (I + A/2)`, A as in `matrix_exp`: `[n, k]`.

    Where k is small beside n, by a system of 2k equations: `I + U (I - V^T U / 2)^-1 V^T`.
    """
    n, k = raw.shape
    if 4 * k >= n:
        half, one = _skew(raw) / 2, jnp.eye(n, dtype=raw.dtype)
        return jnp.linalg.solve(one - half, (one + half)[:, :k])
    left, right, eye = _factors(raw)
    inner = jnp.eye(2 * k, dtype=raw.dtype) - right.T @ left / 2
    return eye + left @ jnp.linalg.solve(inner, right.T @ eye)


def skew_expm(square: jax.Array, columns: int) -> jax.Array:
    """The first `columns` of `exp((M - M^T) / 2)`, M `[n, n]`: the projection as the paper words it."""
    return expm((square - square.T) / 2)[:, :columns]


MAPS = ("householder", "matrix_exp", "cayley", "skew_expm")


def default_map(features: int, inputs: int) -> str:
    """What torch chooses, and the published programs with it: the exponential for square weights, else Householder."""
    return "matrix_exp" if features == inputs else "householder"


def orthogonal_weight(raw, base, kind: str, shape: tuple[int, int], signs=None) -> jax.Array:
    """The weight of `shape` `[features, inputs]`.

    Args:
      raw: of the weight's shape; for "skew_expm" `[n, n]`.
      base: `[n, n]`, or None for the identity.
      kind: one of `MAPS`.
      signs: `[k]`, for "householder". None takes raw's diagonal, cut to whole numbers and without gradient, as torch
        does; a diagonal that weight decay has moved from -1 then makes the weight zero for good.
    """
    columns = min(shape)
    # Lower precision, TF32 say, would leave columns that are orthonormal to three digits only.
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
    """`(raw, base)` with which a weight starts at `initial` `[features, inputs]` made orthogonal.

    The base is the Q factor, R's diagonal positive, of `initial` (tall) with `completion` `[n, n - k]` beside it; `raw`
    is minus the identity, where every map gives the identity's first columns.
    """
    tall = initial if initial.shape[0] >= initial.shape[1] else initial.T
    base, triangle = jnp.linalg.qr(jnp.concatenate([tall, completion], axis=1))
    raw = -jnp.eye(*tall.shape, dtype=tall.dtype)
    return raw if tall is initial else raw.T, base * jnp.where(jnp.diagonal(triangle) < 0, -1, 1)


def init_raw(initial: jax.Array) -> jax.Array:
    """`raw` with which a Householder weight without base starts at `initial` made orthogonal: LAPACK's QR vectors.

    The diagonal holds the signs that make R's diagonal positive.
    """
    tall = initial if initial.shape[0] >= initial.shape[1] else initial.T
    packed, scales = jnp.linalg.qr(tall, mode="raw")
    raw, columns = packed.T, tall.shape[1]
    signs = jnp.sign(jnp.diagonal(raw)) * jnp.where(scales == 0, -1, 1)
    raw = raw.at[jnp.arange(columns), jnp.arange(columns)].set(signs)
    return raw if tall is initial else raw.T


def orthogonality_error(weight: jax.Array) -> jax.Array:
    """`max |W^T W - I|` over the smaller side of a weight."""
    tall = weight if weight.shape[0] >= weight.shape[1] else weight.T
    with jax.default_matmul_precision("highest"):
        return jnp.abs(tall.T @ tall - jnp.eye(tall.shape[1])).max()


class OrthogonalDense(nn.Module):
    """`[..., inputs]` to `[..., features]` by `x W^T`, W orthogonal; the collection "state" holds what is not trained.

    kind: one of `MAPS`; "" is `default_map`.
    reference_exact: the signs of "householder" are torch's, so that weight decay makes the weight zero after a step.
      Otherwise they are constants of the state.
    """

    features: int
    kind: str = ""
    reference_exact: bool = False

    @nn.compact
    def __call__(self, x):
        inputs = x.shape[-1]
        shape, kind = (self.features, inputs), self.kind or default_map(self.features, inputs)
        n, k = max(shape), min(shape)
        if kind == "skew_expm":
            return x @ orthogonal_weight(self.param("raw", _uniform(n), (n, n)), None, kind, shape).T

        def draw_base():
            keys = jax.random.split(self.make_rng("params"))
            first = _uniform(inputs)(keys[0], shape)
            return init_raw_and_base(first, jax.random.normal(keys[1], (n, n - k)))[1]

        raw = self.param("raw", lambda key, shape: -jnp.eye(*shape), shape)
        base, signs = self.variable("state", "base", draw_base).value, None
        if kind == "householder" and not self.reference_exact:
            signs = self.variable("state", "signs", lambda: -jnp.ones((k,))).value
        return x @ orthogonal_weight(raw, base, kind, shape, signs).T


def check(kind: str, key: str) -> None:
    """Refuses a map that does not exist.

    Raises:
      UserError: names the config `key` and the maps.
    """
    if kind and kind not in MAPS:
        raise UserError(
            f"{key}={kind!r} is no orthogonal map: {plugins.did_you_mean(kind, MAPS)}, or '' for the usual one"
        )


def _uniform(fan_in):
    """Initialiser U(-1/sqrt(fan_in), 1/sqrt(fan_in))."""
    bound = 1 / math.sqrt(fan_in)
    return lambda key, shape: jax.random.uniform(key, shape, jnp.float32, -bound, bound)


def _skew(raw):
    n, k = raw.shape
    lower = jnp.pad(jnp.tril(raw, -1), ((0, 0), (0, n - k)))
    return lower - lower.T


def _factors(raw):
    """U, V `[n, 2k]` with U V^T = A, and the identity's first k columns."""
    lower, eye = jnp.tril(raw, -1), jnp.eye(*raw.shape, dtype=raw.dtype)
    return jnp.concatenate([lower, -eye], axis=1), jnp.concatenate([eye, lower], axis=1), eye
