"""Computes HSIC and CKA of representations, and t-SNE of features.

HSIC and CKA measure the similarity of representations. t-SNE embeds features in the plane.
"""

from collections.abc import Iterable, Sequence

import jax
import numpy as np

from cdl_jax.errors import UserError


def intermediates(module, variables, images, paths: Iterable[str] | None = None) -> dict[str, np.ndarray]:
    """Returns the outputs of a network's modules in evaluation.

    The output of a batch norm is taken before the ReLU that follows it.

    Args:
      module: a Flax module.
      variables: of the module.
      images: float32 `[batch, size, size, 3]`.
      paths: of modules, such as `stem/bn1`; None: all.

    Returns:
      Path of a module -> its output; the first where there are several. The network itself has the path "".
    """
    selected = None if paths is None else set(paths)

    def is_selected(part, _):
        return selected is None or "/".join(part.path) in selected

    _, state = module.apply(variables, images, train=False, capture_intermediates=is_selected, mutable="intermediates")
    leaves, _ = jax.tree_util.tree_flatten_with_path(state["intermediates"], is_leaf=lambda x: isinstance(x, tuple))
    return {"/".join(key.key for key in path[:-1]): np.asarray(jax.tree.leaves(outputs)[0]) for path, outputs in leaves}


def hsic(k: np.ndarray, m: np.ndarray) -> float:
    """Returns the unbiased Hilbert-Schmidt independence criterion.

    Args:
      k: Gram matrix `[n, n]`, n >= 4; the diagonal is ignored.
      m: likewise.

    Source: Song et al., 2012.
    """
    n = len(k)
    k, m = k * (1 - np.eye(n)), m * (1 - np.eye(n))
    row_sums_k, row_sums_m = k.sum(axis=0), m.sum(axis=0)
    total = (k * m).sum() + row_sums_k.sum() * row_sums_m.sum() / ((n - 1) * (n - 2))
    total = total - 2 / (n - 2) * (row_sums_k @ row_sums_m)
    return float(total / (n * (n - 3)))


def hsic_terms(first: Sequence[np.ndarray], second: Sequence[np.ndarray]) -> np.ndarray:
    """Returns `hsic` within and between two networks for each pair of layers.

    Args:
      first: the outputs of each layer for one batch, `[batch, ...]` with at least 4 images.
      second: likewise of the other network.

    Returns:
      float64 `[3, a, b]`: `hsic` of (first, first), (first, second), (second, second).
    """
    first_grams = [_gram(x) for x in first]
    second_grams = first_grams if second is first else [_gram(x) for x in second]
    cross = [[hsic(k, m) for m in second_grams] for k in first_grams]
    first_self, second_self = ([hsic(k, k) for k in grams] for grams in (first_grams, second_grams))
    return np.stack(np.broadcast_arrays(np.asarray(first_self)[:, None], cross, np.asarray(second_self)))


def cka(batches: Iterable[tuple[Sequence[np.ndarray], Sequence[np.ndarray]]]) -> np.ndarray:
    """Returns the linear centered kernel alignment of two networks' layers.

    Each term is a mean over minibatches, so memory holds one minibatch. The terms are computed in float64: in float32
    the terms of nearly constant layers may become negative.

    Args:
      batches: the arguments of `hsic_terms` for each minibatch.

    Returns:
      float64 `[a, b]`.

    Source: Nguyen et al., 2021.
    """
    first_self, cross, second_self = np.mean([hsic_terms(*batch) for batch in batches], axis=0)
    return cross / np.sqrt(first_self * second_self)


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Returns the biased linear centered kernel alignment of all images at once.

    Args:
      x: features `[n, ...]`.
      y: features `[n, ...]`.

    Source: Kornblith et al., 2019.
    """
    x, y = (m.reshape(len(m), -1).astype(np.float64) for m in (x, y))
    x, y = x - x.mean(axis=0), y - y.mean(axis=0)
    return float(((x.T @ y) ** 2).sum() / np.sqrt(((x.T @ x) ** 2).sum() * ((y.T @ y) ** 2).sum()))


def _gram(x):
    x = np.asarray(x, np.float64).reshape(len(x), -1)
    x = x - x.mean(axis=0)  # only for the rounding of features far from 0: `hsic` is invariant
    return x @ x.T


def tsne(
    features: np.ndarray, perplexity: float = 30.0, pca: int = 50, seed: int = 0, learning_rate: float | str = "auto"
) -> np.ndarray:
    """Embeds features in the plane by standardization, PCA and exact t-SNE.

    DKT has the same steps. The t-SNE is scikit-learn's. The exaggeration of 4 is over 250 of the 1000 iterations (DKT:
    100).

    Args:
      features: `[n, ...]`.
      perplexity: of t-SNE, below n.
      pca: largest number of principal components.
      seed: of the initial points.
      learning_rate: of t-SNE; "auto" depends on n. DKT's is 125 (500 without the factor 4 of scikit-learn's gradient);
        it scatters a hundred points or fewer.

    Returns:
      float32 `[n, 2]`.

    Raises:
      UserError: scikit-learn is not installed, or there are too few points for the perplexity.
    """
    if not perplexity < len(features):
        raise UserError(f"perplexity={perplexity} must be less than the {len(features)} points: choose more images")
    try:
        from sklearn.manifold import TSNE
        from sklearn.preprocessing import StandardScaler
    except ImportError:
        raise UserError("t-SNE needs scikit-learn: pip install scikit-learn") from None

    flat = StandardScaler().fit_transform(np.asarray(features, np.float64).reshape(len(features), -1))
    return TSNE(
        perplexity=perplexity, early_exaggeration=4, learning_rate=learning_rate, max_iter=1000, init="random",
        method="exact", random_state=seed,
    ).fit_transform(project(flat, pca))  # fmt: skip


def project(features: np.ndarray, dims: int) -> np.ndarray:
    """Projects centered features on their first principal axes.

    Args:
      features: `[n, dim]`.
      dims: largest number of axes.

    Returns:
      float64 `[n, min(dims, n, dim)]`; signs are arbitrary.
    """
    from sklearn.decomposition import PCA

    return PCA(min(dims, *features.shape), svd_solver="full").fit_transform(np.asarray(features, np.float64))
