"""Metrics of DKT: accuracy on other learners' classes, and the authors' accuracy."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np


def accuracy_on_unmet_classes(
    scores: Sequence[jax.Array], labels: jax.Array, label_ranks: np.ndarray, end: int | jax.Array
) -> jax.Array:
    """Computes the learners' accuracy on classes that only other learners have met.

    The accuracy of a learner is over the classes that it has not met and another learner has. Each image is scaled so
    that the mean over test images with equally many images of each class is this accuracy. The result is the mean over
    the learners that have such classes.

    Args:
      scores: of each learner, float32 `[batch]`: 100 for a correct prediction over all classes, else 0.
      labels: int32 `[batch]`.
      label_ranks: int `[learners, classes]`, position of each label in the learner's class order.
      end: int32, number of classes that every learner has met.

    Returns:
      float32 `[batch]`.

    Example:
      >>> ranks = np.array([[0, 1], [1, 0]])  # the first learner has met class 0, the second class 1
      >>> scores = [jnp.array([100.0, 100.0]), jnp.array([0.0, 0.0])]
      >>> accuracy_on_unmet_classes(scores, jnp.array([0, 1]), ranks, 1).mean().item()
      50.0
    """
    met = jnp.asarray(label_ranks) < end
    unmet = jnp.any(met, axis=0) & ~met
    share = unmet.mean(axis=1)
    scaled = [
        score * mask[labels] / jnp.where(part > 0, part, 1.0)
        for score, mask, part in zip(scores, unmet, share, strict=True)
    ]
    return sum(scaled) / jnp.maximum((share > 0).sum(), 1)


def rounded_correct(logits: jax.Array, labels: jax.Array) -> jax.Array:
    """Scores 1 where the argmax of the rounded probabilities is the label, else 0.

    The authors' stand-alone test counts this. An image whose largest probability is at most one half counts as class
    0, which makes the accuracy too low: use it to compare with theirs, and report the plain accuracy.

    Args:
      logits: float `[batch, classes]`.
      labels: int32 `[batch]`.

    Returns:
      float32 `[batch]`.

    Example:
      >>> logits = jnp.log(jnp.array([[0.3, 0.45, 0.25], [0.2, 0.6, 0.2]]))
      >>> rounded_correct(logits, jnp.array([1, 1])).tolist()
      [0.0, 1.0]
    """
    return (jnp.round(jax.nn.softmax(logits)).argmax(axis=-1) == labels).astype(jnp.float32)
