"""How alike two networks represent the same pictures, and where one of them puts its classes."""

from collections.abc import Iterable, Sequence

import jax
import numpy as np

from cdl_jax.errors import UserError


def intermediates(module, variables, images, chosen: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """What the parts of a network compute of pictures in evaluation: path of a part, `stem/bn1`, -> its output.

    Of a part with several outputs the first; the network itself has the path "". A batch norm's output is that before
    the ReLU behind it.

    Args:
      images: float32 `[batch, size, size, 3]`.
      chosen: paths; None: all of them.
    """
    wanted = None if chosen is None else set(chosen)

    def of_interest(part, _):
        return wanted is None or "/".join(part.path) in wanted

    _, found = module.apply(variables, images, train=False, capture_intermediates=of_interest, mutable="intermediates")
    leaves, _ = jax.tree_util.tree_flatten_with_path(found["intermediates"], is_leaf=lambda x: isinstance(x, tuple))
    return {"/".join(key.key for key in path[:-1]): np.asarray(jax.tree.leaves(outputs)[0]) for path, outputs in leaves}


def hsic(k: np.ndarray, m: np.ndarray) -> float:
    """The unbiased estimate of the Hilbert-Schmidt independence criterion (Song et al., 2012) of two Gram matrices.

    k, m: `[n, n]`, n >= 4; their diagonals are not read.
    """
    n = len(k)
    k, m = k * (1 - np.eye(n)), m * (1 - np.eye(n))
    of_k, of_m = k.sum(axis=0), m.sum(axis=0)
    total = (k * m).sum() + of_k.sum() * of_m.sum() / ((n - 1) * (n - 2)) - 2 / (n - 2) * (of_k @ of_m)
    return float(total / (n * (n - 3)))


def hsic_terms(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """float64 `[3, a, b]`: `hsic` of (first, first), (first, second), (second, second) for each pair of layers.

    first, second: of each layer its output for one batch, `[batch, ...]` with 4 pictures or more.
    """
    of_first = [_gram(x) for x in first]
    of_second = of_first if second is first else [_gram(x) for x in second]
    across = [[hsic(k, m) for m in of_second] for k in of_first]
    own, other = ([hsic(k, k) for k in grams] for grams in (of_first, of_second))
    return np.stack(np.broadcast_arrays(np.asarray(own)[:, None], across, np.asarray(other)))


def cka(batches: Iterable[tuple[Sequence[np.ndarray], Sequence[np.ndarray]]]) -> np.ndarray:
    """Linear centred kernel alignment by minibatches (Nguyen et al., 2021) of two networks' layers, float64 `[a, b]`.

    Each term of it is a mean over batches, whatever their size, so memory holds one batch. Computed in float64: in
    float32 the terms of nearly constant layers may come out negative.

    batches: for each batch, see `hsic_terms`.
    """
    own, across, other = np.mean([hsic_terms(*batch) for batch in batches], axis=0)
    return across / np.sqrt(own * other)


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear centred kernel alignment of all pictures at once, biased (Kornblith et al., 2019); `[n, ...]` each."""
    x, y = (m.reshape(len(m), -1).astype(np.float64) for m in (x, y))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return float(((x.T @ y) ** 2).sum() / np.sqrt(((x.T @ x) ** 2).sum() * ((y.T @ y) ** 2).sum()))


def _gram(x):
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    x = x - x.mean(axis=0)  # which `hsic` does not see, but for the rounding of features far from 0
    return x @ x.T


def tsne(features: np.ndarray, perplexity: float = 30.0, pca: int = 50, seed: int = 0, rate="auto") -> np.ndarray:
    """Places in the plane, float32 `[n, 2]`, for features `[n, ...]`: standardised, projected by PCA, exact t-SNE.

    As DKT has it, by scikit-learn, with an exaggeration of 4 over 250 of the 1000 iterations (DKT: 100).

    Args:
      perplexity: of the neighbours of a point, below n. pca: dimensions to keep, as many as there are at most.
      seed: of the places from which the points start.
      rate: of learning; "auto" follows n. DKT's is 125 (500, without the factor 4 of scikit-learn's gradient): with a
        hundred points or less it scatters them.

    Raises:
      UserError: scikit-learn is not installed, or there are too few points for the perplexity.
    """
    if not perplexity < len(features):
        raise UserError(f"perplexity={perplexity} must be less than the {len(features)} points: choose more pictures")
    try:
        from sklearn.manifold import TSNE
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise UserError("t-SNE needs scikit-learn: pip install scikit-learn") from None

    flat = StandardScaler().fit_transform(np.asarray(features, np.float64).reshape(len(features), -1))
    return TSNE(
        perplexity=perplexity, early_exaggeration=4, learning_rate=rate, max_iter=1000, init="random", method="exact",
        random_state=seed,
    ).fit_transform(projected(flat, pca))  # fmt: skip


def projected(features: np.ndarray, dims: int) -> np.ndarray:
    """Features `[n, dim]` less their mean, on their first principal axes: float64 `[n, dims]`; the signs are chance."""
    from sklearn.decomposition import PCA

    return PCA(min(dims, *features.shape), svd_solver="full").fit_transform(np.asarray(features, np.float64))
