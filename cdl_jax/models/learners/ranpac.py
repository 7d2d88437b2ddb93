"""RanPAC (McDonnell et al., NeurIPS 2023): ridge regression on random projections.

The first task trains adapters with a cosine classifier (phase 1). Then the backbone is fixed. Features f become
`h = relu(f W)` with random numbers W from N(0, 1). The head is the ridge regression from h to one-hot labels, from the
Gram matrix of all images so far. The authors compute in float32 too.

The ridge of a task is the power of ten from 10^-8 to 10^8 with the least squared error on a fifth of the task's images,
of the regression on the others. The authors hold out a random fifth, this program a random image of each five. A ridge
below `2^-23 trace(G)` is less than the rounding errors of the Gram matrix G. It is raised to that number, so that the
matrix has a Cholesky factor.

Published for ViT-B/16 pretrained on ImageNet-21k, Split CIFAR-100 in 10 tasks, accuracy after the last task: 92.2; 90.6
without projection, 89.0 without phase 1, 87.0 without both. Phase 1 there: SGD with momentum 0.9, learning rate 0.01,
cosine to 0, weight decay 5e-4, 20 epochs, batch 48.

"RanPAC: random projections and pre-trained models for continual learning", section 4, algorithm 1.
"""

from collections.abc import Mapping
from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.scipy.linalg import cho_factor, cho_solve
from ml_collections import ConfigDict

from cdl_jax.losses import Context
from cdl_jax.models.learners.base import FittedHead, Variables
from cdl_jax.models.learners.shared import first_task
from cdl_jax.models.learners.shared.fitted_heads import CosineClassifier
from cdl_jax.options import Option

OPTIONS = {
    "projection": Option(10000, "width of the random projection; 0: the features themselves"),
    "ridge": Option(0.0, "weight of the squared kernel; 0: chosen in each task from 10^-8 to 10^8"),
    **first_task.OPTIONS,
}

RIDGES = tuple(10.0**exponent for exponent in range(-8, 9))
_PARTS = ("earlier", "fit", "held_out")
_FOLD = 5  # one image of each five is held out for the choice of the ridge


class RidgeHead(FittedHead):
    """Ridge regression from projected features to one-hot labels.

    State: `kernel` `[width, num_classes]`, and with a projection `projection` `[dim, width]` from N(0, 1). Statistics:
    `gram_<part>` `[width, width]` and `cross_<part>` `[width, num_classes]` of the parts "earlier", images of earlier
    tasks, "fit" and "held_out", images of the task; int32 `task`; `count`, images of the task.

    Attributes:
      num_classes: number of logits of a set.
      width: of the random projection; 0: none.
      ridge: weight of the squared kernel; 0: chosen in each task.
      is_trained: whether a `CosineClassifier` on the features returns the first set of logits.
    """

    num_classes: int
    width: int
    ridge: float
    is_trained: bool

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        dim = features.shape[-1]
        state = {}
        if self.width:
            state["projection"] = self.variable(
                "state", "projection", lambda: jax.random.normal(self.make_rng("params"), (dim, self.width))
            ).value
        kernel = self.variable("state", "kernel", jnp.zeros, (self.width or dim, self.num_classes)).value
        logits = jnp.dot(self.statistics_input({"state": state}, features), kernel, precision="highest")
        if not self.is_trained:
            return logits
        return jnp.concatenate([CosineClassifier(self.num_classes, name="classifier")(features), logits], axis=1)

    @nn.nowrap
    def statistics_input(self, variables: Variables, features: jax.Array) -> jax.Array:
        """Returns `relu(f W)`, or the features without a projection."""
        if not self.width:
            return features
        return jax.nn.relu(jnp.dot(features, variables["state"]["projection"], precision="highest"))

    @nn.nowrap
    def init_statistics(self, width: int) -> dict[str, jax.Array]:
        width = self.width or width
        shapes = {"gram": (width, width), "cross": (width, self.num_classes)}
        sums = {f"{name}_{part}": jnp.zeros(shape) for name, shape in shapes.items() for part in _PARTS}
        return {**sums, "task": jnp.int32(0), "count": jnp.float32(0)}

    @nn.nowrap
    def accumulate(
        self, statistics: Mapping[str, jax.Array], features: jax.Array, labels: jax.Array, context: Context
    ) -> dict[str, jax.Array]:
        new = dict(_start_task(statistics, context.task))
        number = new["count"] + jnp.cumsum(context.weight)  # 1 for the first image of the task
        is_held_out = select_held_out(number.astype(jnp.int32) - 1) * context.weight
        one_hot = jax.nn.one_hot(labels, self.num_classes)
        for part, weight in (("fit", context.weight - is_held_out), ("held_out", is_held_out)):
            weighted = features * weight[:, None]
            new[f"gram_{part}"] += jnp.dot(weighted.T, features, precision="highest")
            new[f"cross_{part}"] += jnp.dot(weighted.T, one_hot, precision="highest")
        return {**new, "count": number[-1]}

    @nn.nowrap
    def fit(self, variables: Variables, statistics: Mapping[str, jax.Array], context: Context) -> Variables:
        """Returns the variables with the kernel of all images so far."""
        del context
        gram, cross = (sum(statistics[f"{name}_{part}"] for part in _PARTS) for name in ("gram", "cross"))
        ridge = self.ridge or choose_ridge(statistics)
        return {**variables, "state": {**variables["state"], "kernel": solve_ridge(gram, cross, ridge)}}


def _start_task(statistics, task):
    """Returns the statistics in which the sums of a task before `task` are "earlier"."""
    is_new, new = statistics["task"] != task, {"task": task}
    for name in ("gram", "cross"):
        earlier, *parts = (statistics[f"{name}_{part}"] for part in _PARTS)
        new[f"{name}_earlier"] = jnp.where(is_new, earlier + sum(parts), earlier)
        for part, value in zip(_PARTS[1:], parts, strict=True):
            new[f"{name}_{part}"] = jnp.where(is_new, 0, value)
    return {**new, "count": jnp.where(is_new, 0, statistics["count"])}


def select_held_out(number: jax.Array) -> jax.Array:
    """Returns whether an image is held out: one of each five, at a random place.

    Every fifth image would leave classes out of a file whose classes take turns.

    >>> [int(select_held_out(jnp.arange(5 * i, 5 * i + 5)).sum()) for i in range(4)]
    [1, 1, 1, 1]

    Args:
      number: int32 `[batch]`, position of each image in the task.
    """
    keys = jax.vmap(partial(jax.random.fold_in, jax.random.key(0)))(number // _FOLD)
    places = jax.vmap(lambda key: jax.random.randint(key, (), 0, _FOLD))(keys)
    return number % _FOLD == places


def solve_ridge(gram: jax.Array, cross: jax.Array, ridge: jax.Array | float) -> jax.Array:
    """Returns `(G + lambda I)^-1 Q` by a Cholesky factor, in float32.

    Args:
      gram: G, float32 `[width, width]`, positive semidefinite.
      cross: Q, float32 `[width, classes]`.
      ridge: lambda; it is raised to `2^-23 trace(G)` if it is less.
    """
    ridge = jnp.maximum(ridge, jnp.finfo(jnp.float32).eps * jnp.trace(gram))
    return cho_solve(cho_factor(gram + ridge * jnp.eye(len(gram)), lower=True), cross)


def choose_ridge(statistics: Mapping[str, jax.Array]) -> jax.Array:
    """Returns the ridge of `RIDGES` with the least squared error on held-out images.

    The error of a kernel K is `tr(K^T G K) - 2 tr(K^T Q)` and a constant, of the Gram matrix G of these images and Q.

    Args:
      statistics: of a `RidgeHead`.
    """

    def error(ridge):
        kernel = solve_ridge(statistics["gram_fit"], statistics["cross_fit"], ridge)
        squares = jnp.dot(statistics["gram_held_out"], kernel, precision="highest")
        return (kernel * (squares - 2 * statistics["cross_held_out"])).sum()

    ridges = jnp.array(RIDGES, jnp.float32)
    return ridges[jnp.argmin(jax.lax.map(error, ridges))]


class RanPAC(first_task.FirstTaskLearner):
    """Adapters of the first task, and a `RidgeHead`.

    Attributes:
      projection: width of the random projection; 0: none.
      ridge: weight of the squared kernel; 0: chosen in each task.
    """

    projection: int
    ridge: float

    @nn.nowrap
    def head(self, num_classes: int) -> RidgeHead:
        """Returns the ridge regression."""
        return RidgeHead(num_classes, self.projection, self.ridge, self.adaptation != "none")


def build(options: ConfigDict, *, dim: int, key_dim: int, depth: int, num_tasks: int) -> RanPAC:
    """Returns the learner of an option section, see `models.learners.base`."""
    del key_dim, num_tasks
    own = {key: options[key] for key in OPTIONS}
    return RanPAC(**own, dim=dim, depth=depth)
