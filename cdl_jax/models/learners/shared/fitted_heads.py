"""Fitted heads of learners: class prototypes, and a cosine classifier.

The cosine classifier trains what comes before a fit: a learner with a fitted head may also train adapters with a
classifier of its own. Its head then returns two sets of logits: those of the trained classifier, and those of the fit.
`select_logits` returns the set that a step needs.
"""

from collections.abc import Mapping

import flax.linen as nn
import jax
import jax.numpy as jnp

from cdl_jax.losses import Context
from cdl_jax.models.learners.base import FittedHead, Variables, l2_normalize
from cdl_jax.models.modules import heads


class CosineClassifier(nn.Module):
    """Cosines of features and class vectors, times a trained scale.

    Features are `[batch, dim]`, the scaled cosines `[batch, num_classes]`. Parameters: `kernel` `[dim, num_classes]`
    with torch's initial values, and `scale` `[]`, 1 at first.
    """

    num_classes: int

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        kernel = self.param("kernel", heads.torch_kernel, (features.shape[-1], self.num_classes))
        scale = self.param("scale", nn.initializers.ones, ())
        return scale * cosines(features, kernel.T)


def cosines(features: jax.Array, vectors: jax.Array) -> jax.Array:
    """Returns the cosines of features and class vectors, 0 for vectors of zeros.

    Args:
      features: float32 `[batch, dim]`.
      vectors: float32 `[classes, dim]`.

    Returns:
      float32 `[batch, classes]`.

    >>> print(cosines(jnp.array([[3.0, 4.0]]), jnp.array([[2.0, 0.0], [0.0, 0.0]])))
    [[0.6 0. ]]
    """
    return jnp.einsum("bd,cd->bc", l2_normalize(features), l2_normalize(vectors), precision="highest")


def class_sums(
    statistics: Mapping[str, jax.Array], features: jax.Array, labels: jax.Array, context: Context
) -> dict[str, jax.Array]:
    """Adds a batch to the sums of features and the numbers of images of each class.

    Args:
      statistics: `sums` float32 `[classes, width]`, `counts` float32 `[classes]`.
      features: float32 `[batch, width]`.
      labels: int32 `[batch]`.
      context: `context.weight`, float32 `[batch]`, is 0 for padding.
    """
    one_hot = jax.nn.one_hot(labels, len(statistics["counts"])) * context.weight[:, None]
    sums = jnp.einsum("bc,bd->cd", one_hot, features, precision="highest")
    return {"sums": statistics["sums"] + sums, "counts": statistics["counts"] + one_hot.sum(axis=0)}


def class_means(statistics: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the mean features of each class, float32 `[classes, width]`.

    Classes without images have zeros.
    """
    return statistics["sums"] / jnp.maximum(statistics["counts"], 1)[:, None]


class PrototypeHead(FittedHead):
    """Cosines of the features and the mean features of each class.

    The state `prototypes` `[num_classes, width]` has the means. Classes without images have the logit 0.

    Attributes:
      num_classes: number of logits of a set.
      trained_width: width of the features that train a `CosineClassifier`; 0: there is none, and one set of logits.
        The classifier reads the first `trained_width` entries. Its scale also multiplies the cosines of the fit.
    """

    num_classes: int
    trained_width: int = 0

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        prototypes = self.variable("state", "prototypes", jnp.zeros, (self.num_classes, features.shape[-1])).value
        logits = cosines(features, prototypes)
        if not self.trained_width:
            return logits
        classifier = CosineClassifier(self.num_classes, name="classifier")
        trained = classifier(features[:, : self.trained_width])
        return jnp.concatenate([trained, classifier.variables["params"]["scale"] * logits], axis=1)

    @nn.nowrap
    def init_statistics(self, width: int) -> dict[str, jax.Array]:
        return {"sums": jnp.zeros((self.num_classes, width)), "counts": jnp.zeros(self.num_classes)}

    @nn.nowrap
    def accumulate(
        self, statistics: Mapping[str, jax.Array], features: jax.Array, labels: jax.Array, context: Context
    ) -> dict[str, jax.Array]:
        return class_sums(statistics, features, labels, context)

    @nn.nowrap
    def fit(self, variables: Variables, statistics: Mapping[str, jax.Array], context: Context) -> Variables:
        """Returns the variables with the class means as prototypes."""
        del context
        return {**variables, "state": {"prototypes": class_means(statistics)}}


def select_logits(logits: tuple[jax.Array, ...], train: bool) -> jax.Array:
    """Returns the trained classifier's logits in training, the fit's in evaluation.

    Args:
      logits: one array float32 `[batch, 2 classes]`, the set of the trained classifier first.
      train: whether this is a training step.
    """
    return jnp.split(logits[0], 2, axis=1)[0 if train else 1]
