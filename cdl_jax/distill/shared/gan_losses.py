"""Losses of a GAN whose discriminator a frozen network teaches.

The hinge losses and the LeCam regularizer need no teacher. KD-DLGAN (Cui et al., 2023) compares a feature of the
discriminator with that of the teacher for the same image. VkD (Miles et al., 2024) projects the pooled feature
orthogonally and whitens that of the teacher. VkD's own code of this experiment is not public: its term here is our
reading. In all functions row i of the fake images is paired with row i of the real ones.
"""

from typing import TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import struct

from cdl_jax.distill.shared.relations import normalize_rows
from cdl_jax.models.modules import feature_norms

NORMS, ROOTS = ("none", "layer", "whiten"), ("cholesky", "zca")
SCOPES = ("each", "joint", "data")
DISTANCES = ("smooth_l1", "norm")

Variables = TypeVar("Variables")  # a tree of arrays


def discriminator_hinge(real_scores: jax.Array, fake_scores: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Returns the hinge losses of real and of fake images, two float32 scalars.

    They are `mean relu(1 - s_real)` and `mean relu(1 + s_fake)`.

    >>> [float(loss) for loss in discriminator_hinge(jnp.array([2.0, 0.0]), jnp.array([-3.0, 1.0]))]
    [0.5, 1.0]

    Args:
      real_scores: float32 `[batch]`.
      fake_scores: float32 `[batch]`.
    """
    return jax.nn.relu(1 - real_scores).mean(), jax.nn.relu(1 + fake_scores).mean()


def generator_hinge(fake_scores: jax.Array) -> jax.Array:
    """Returns the loss of the generator, `-mean s_fake`."""
    return -fake_scores.mean()


def update_mean(old: Variables, new: Variables, step: jax.Array, start: int, decay: float) -> Variables:
    """Returns running means after a step.

    They are `new` below step `start`, then `decay old + (1 - decay) new`. This is the rule of the scores' means in
    LeCam, and of the averaged generator, including its running statistics and spectral vectors.

    Args:
      old: running means, a tree of float32 arrays.
      new: values of this step, the same tree. They get no gradient.
      step: int32, number of steps of the generator so far.
      start: the first step whose values are averaged.
      decay: weight of `old`.
    """

    def move(old, new):
        return jnp.where(step < start, new, decay * old + (1 - decay) * new)

    return jax.tree.map(move, old, jax.lax.stop_gradient(new))


@struct.dataclass
class ScoreMeans:
    """Running means of the scores of real and of fake images, float32 scalars.

    They have no gradient.
    """

    real: jax.Array
    fake: jax.Array

    @staticmethod
    def zeros() -> "ScoreMeans":
        """Returns means of 0. A first update below `start` replaces them."""
        return ScoreMeans(jnp.zeros(()), jnp.zeros(()))

    def update(
        self, real_scores: jax.Array, fake_scores: jax.Array, step: jax.Array, start: int = 1000, decay: float = 0.9
    ) -> "ScoreMeans":
        """Returns the means after the scores of a batch.

        Args:
          real_scores: float32 `[batch]`.
          fake_scores: float32 `[batch]`.
          step: int32, number of steps of the generator so far.
          start: below this step, the batch's mean replaces the running mean. Default 1000.
          decay: weight of the old mean from then on, default 0.9.
        """
        return update_mean(self, ScoreMeans(real_scores.mean(), fake_scores.mean()), step, start, decay)


def lecam(
    means: ScoreMeans, real_scores: jax.Array, fake_scores: jax.Array, step: jax.Array, start: int = 1000
) -> jax.Array:
    """Returns the LeCam regularizer, without its weight: a float32 scalar.

    `mean relu(s_real - a_fake)^2 + mean relu(a_real - s_fake)^2` after step `start`, else 0. Source: Tseng et al.,
    2021; google/lecam-gan.

    Args:
      means: a, already updated with these scores.
      real_scores: float32 `[batch]`.
      fake_scores: float32 `[batch]`.
      step: int32, number of steps of the generator so far.
      start: default 1000.
    """
    real = (jax.nn.relu(real_scores - jax.lax.stop_gradient(means.fake)) ** 2).mean()
    fake = (jax.nn.relu(jax.lax.stop_gradient(means.real) - fake_scores) ** 2).mean()
    return jnp.where(step > start, real + fake, 0.0)


def aggregated_loss(
    teacher_real: jax.Array,
    teacher_fake: jax.Array,
    real: jax.Array,
    fake: jax.Array,
    opposite: jax.Array | float = 1.0,
) -> tuple[jax.Array, jax.Array]:
    """Returns KD-DLGAN's aggregated terms of real and of fake images.

    `A_real = mean |c_real - f_real| + mean |c_real - f_fake|`, and A_fake with real and fake exchanged. The distances
    are Euclidean, not squared, as in the authors' code.

    Args:
      teacher_real, teacher_fake: c, features of the teacher, float32 `[batch, dim]`. They get no gradient.
      real, fake: f, features of the discriminator, float32 `[batch, dim]`.
      opposite: factor of each second distance, a scalar or `[batch]`; default 1.

    Returns:
      (A_real, A_fake), float32 scalars.
    """

    def distances(teacher, feature):
        return _row_norms(jax.lax.stop_gradient(teacher) - feature)

    def term(teacher, matching, opposing):
        return distances(teacher, matching).mean() + (opposite * distances(teacher, opposing)).mean()

    return term(teacher_real, real, fake), term(teacher_fake, fake, real)


def correlated_loss(teacher: jax.Array, feature: jax.Array, text: jax.Array) -> jax.Array:
    """Returns KD-DLGAN's correlated term, a float32 scalar.

    It is the sum of all `(r(c) - r(f))^2`, where `r(a)` are the rows of `a T^T`, each divided by its length. The
    authors' code rounds the products to half precision.

    Args:
      teacher: c, features of the teacher, float32 `[batch, dim]`. They get no gradient.
      feature: f, features of the discriminator, float32 `[batch, dim]`.
      text: T, features of texts, float32 `[texts, dim]`.
    """
    teacher, text = jax.lax.stop_gradient(teacher), jax.lax.stop_gradient(text)
    return ((_similarities(teacher, text) - _similarities(feature, text)) ** 2).sum()


def diversity(teacher_fake: jax.Array, text: jax.Array, permutation: jax.Array) -> jax.Array:
    """Returns KD-DLGAN's diversity, a float32 scalar.

    It is the sum of all `(r(c) - r(c)[permutation])^2`. It has no gradient, as it depends on the teacher alone; so it
    is a measurement of the fake images.

    Args:
      teacher_fake: c, features of the teacher, float32 `[batch, dim]`.
      text: T, features of texts, float32 `[texts, dim]`.
      permutation: int32 `[batch]`.
    """
    rows = jax.lax.stop_gradient(_similarities(teacher_fake, text))
    return ((rows - rows[permutation]) ** 2).sum()


def _similarities(features, text):
    """Returns the rows `features text^T`, each divided by its length."""
    return normalize_rows(jnp.matmul(features, text.T, precision=jax.lax.Precision.HIGHEST))


def teacher_targets(
    teacher_real: jax.Array,
    teacher_fake: jax.Array,
    *,
    norm: str = "whiten",
    root: str = "cholesky",
    epsilon: float = 1e-2,
    scope: str = "each",
    whitening: feature_norms.Whitening | None = None,
) -> tuple[jax.Array, jax.Array]:
    """Returns the normalized features of the teacher, the targets of VkD's term.

    Args:
      teacher_real: float32 `[batch, dim]`. It gets no gradient.
      teacher_fake: float32 `[batch, dim]`. It gets no gradient.
      norm: "whiten", "layer" (each row has mean 0 and variance 1), or "none".
      root: of whitening, "cholesky" or "zca"; see `feature_norms.whiten`.
      epsilon: shrinks the covariance of whitening towards the identity, default 0.01. Above 0 if a batch has no more
        rows than channels.
      scope: rows of the statistics of whitening: "each", the real and the fake images separately; "joint", both
        together, which keeps the difference of their means; "data", those of `whitening`.
      whitening: fixed statistics, for the scope "data".

    Returns:
      (targets of the real images, targets of the fake images), float32 `[batch, dim]`.

    Raises:
      UserError: `epsilon` is 0, and there are too few rows.
    """
    real, fake = jax.lax.stop_gradient((teacher_real, teacher_fake))
    if norm == "whiten" and scope == "data":
        targets = whitening(real), whitening(fake)
    else:
        kind, epsilon = (f"whiten_{root}", epsilon) if norm == "whiten" else (norm, None)
        if norm == "whiten" and scope == "joint":
            joint = feature_norms.normalize(jnp.concatenate([real, fake]), kind, epsilon)
            targets = joint[: len(real)], joint[len(real) :]
        else:
            targets = tuple(feature_norms.normalize(rows, kind, epsilon) for rows in (real, fake))
    return jax.lax.stop_gradient(targets)


def feature_distance(projected: jax.Array, targets: jax.Array, kind: str = "smooth_l1") -> jax.Array:
    """Returns the distance between projected features and targets, a scalar.

    >>> rows, zeros = jnp.array([[3.0, 4.0]]), jnp.zeros((1, 2))
    >>> float(feature_distance(rows, zeros)), float(feature_distance(rows, zeros, "norm"))
    (3.0, 5.0)

    Args:
      projected: float32 `[batch, dim]`, pooled features of the discriminator after `distill.vkd.Projector`.
      targets: float32 `[batch, dim]`, of `teacher_targets`.
      kind: "smooth_l1" (beta 1), the mean over all entries; "norm", the mean over the rows of the Euclidean distance.
        The second is about a hundred times as large, so it needs another weight.
    """
    if kind == "norm":
        return _row_norms(projected - targets).mean()
    return optax.huber_loss(projected, targets).mean()


def _row_norms(x):
    """Returns the lengths of rows `[batch]`, with a gradient of 0 at length 0."""
    return optax.safe_norm(x, 0.0, axis=-1)
