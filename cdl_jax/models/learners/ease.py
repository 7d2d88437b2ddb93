"""EASE (Zhou et al., CVPR 2024): each task's adapters, prototypes in their spaces.

Each task trains new adapters beside the MLPs, and a cosine classifier that is discarded. The features of an image are
those with the adapters of each task so far: T + 1 tasks need T + 1 passes; here all tasks of the stream have a pass in
evaluation, since shapes are constant. A class has a prototype in the space of its own task and of earlier tasks, the
mean of its features. In the space of a later task it gets the mean of the prototypes of that task's classes, weighted
by the softmax of their cosines with the class in the space of its own task. The score of a class is its cosine in the
space of its own task, and `alpha / T` times the sum of its cosines in the others, after T + 1 tasks.

The paper completes prototypes when a task ends. Here, as in the code of the paper, they are computed again after each
task, from the classes of the adapters' task and of all later ones.

Published for ViT-B/16 (ImageNet-21k), Split CIFAR-100 in 20 tasks of 5 classes: 91.51 as the mean over the tasks, and,
not checked against the paper, 85.80 after the last task. SGD with momentum 0.9, learning rate 0.025, cosine to 0,
weight decay 5e-4, 20 epochs, batch 48.

"Expandable subspace ensemble for pre-trained model-based class-incremental learning", sections 4.1 to 4.3.
"""

from collections.abc import Mapping
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from ml_collections import ConfigDict

from cdl_jax.losses import Context
from cdl_jax.models.learners.base import FittedHead, Learner, Selection, Variables, l2_normalize
from cdl_jax.models.learners.shared.bottlenecks import init_bottlenecks, parallel_adapters
from cdl_jax.models.learners.shared.fitted_heads import CosineClassifier, class_means, class_sums, select_logits
from cdl_jax.models.learners.shared.task_sets import with_trained_set
from cdl_jax.options import Option

OPTIONS = {
    "rank": Option(64, "width of the bottleneck", minimum=1),
    "scale": Option(0.1, "factor of the adapters' output"),
    "dropout": Option(0.1, "rate of dropout in the bottleneck", below=1),
    "alpha": Option(0.1, "weight of the cosines in the spaces of other tasks"),
}


class SubspaceHead(FittedHead):
    """Cosines with prototypes in the spaces of all tasks.

    State: `prototypes` `[num_classes, num_tasks, dim]`; int32 `tasks` `[num_classes]`, the task of each class; int32
    `last`, the last task. Statistics: those of `class_sums`, and `tasks`.

    Attributes:
      num_classes: number of logits of a set.
      num_tasks: of the stream.
      alpha: weight of the cosines in the spaces of other tasks.
    """

    num_classes: int
    num_tasks: int
    alpha: float

    @nn.compact
    def __call__(self, features: jax.Array) -> jax.Array:
        spaces = features.reshape(len(features), self.num_tasks, -1)
        shape = (self.num_classes, self.num_tasks, spaces.shape[-1])
        prototypes = self.variable("state", "prototypes", jnp.zeros, shape).value
        tasks = self.variable("state", "tasks", jnp.zeros, self.num_classes, jnp.int32).value
        last = self.variable("state", "last", jnp.zeros, (), jnp.int32).value
        cosines = jnp.einsum("btd,ctd->bct", l2_normalize(spaces), l2_normalize(prototypes), precision="highest")
        weights = space_weights(tasks, last, self.num_tasks, self.alpha)
        classifier = CosineClassifier(self.num_classes, name="classifier")
        trained = classifier(spaces[:, 0])
        return jnp.concatenate([trained, classifier.variables["params"]["scale"] * (cosines * weights).sum(-1)], axis=1)

    @nn.nowrap
    def init_statistics(self, width: int) -> dict[str, jax.Array]:
        classes = self.num_classes
        return {
            "sums": jnp.zeros((classes, width)),
            "counts": jnp.zeros(classes),
            "tasks": jnp.zeros(classes, jnp.int32),
        }

    @nn.nowrap
    def accumulate(
        self, statistics: Mapping[str, jax.Array], features: jax.Array, labels: jax.Array, context: Context
    ) -> dict[str, jax.Array]:
        new = class_sums(statistics, features, labels, context)
        return {**new, "tasks": jnp.where(new["counts"] > statistics["counts"], context.task, statistics["tasks"])}

    @nn.nowrap
    def fit(self, variables: Variables, statistics: Mapping[str, jax.Array], context: Context) -> Variables:
        """Returns the variables with completed prototypes.

        The prototypes are those of all classes so far in the spaces of all tasks so far.
        """
        means = class_means(statistics).reshape(self.num_classes, self.num_tasks, -1)
        is_seen = statistics["counts"] > 0
        prototypes = complete_prototypes(means, statistics["tasks"], is_seen, context.task)
        return {**variables, "state": {"prototypes": prototypes, "tasks": statistics["tasks"], "last": context.task}}


def space_weights(tasks: jax.Array, last: jax.Array, num_tasks: int, alpha: float) -> jax.Array:
    """Returns each space's weight in each class's score, float32 `[classes, tasks]`.

    Args:
      tasks: int32 `[classes]`, the task of each class.
      last: int32, the last task. Spaces of later tasks have the weight 0.
      num_tasks: of the stream.
      alpha: weight of the other spaces together, relative to the class's own.

    >>> print(space_weights(jnp.array([0, 1]), jnp.int32(2), 4, 0.5))
    [[1.   0.25 0.25 0.  ]
     [0.25 1.   0.25 0.  ]]
    """
    spaces = jnp.arange(num_tasks)
    others = alpha / jnp.maximum(last, 1)
    return jnp.where(spaces > last, 0.0, jnp.where(spaces == tasks[:, None], 1.0, others))


def complete_prototypes(means: jax.Array, tasks: jax.Array, is_seen: jax.Array, last: jax.Array) -> jax.Array:
    """Returns the prototypes in all spaces, float32 `[classes, tasks, dim]`.

    Prototypes in spaces after the last task are zeros.

    Args:
      means: float32 `[classes, tasks, dim]`, the mean features of each class in each space. Those in the spaces of
        tasks after the class's own are not used.
      tasks: int32 `[classes]`, the task of each class.
      is_seen: bool `[classes]`.
      last: int32, the last task.
    """
    classes, num_tasks, _ = means.shape
    unit = l2_normalize(means)
    similarity = jnp.einsum("itd,ktd->tik", unit, unit, precision="highest")[tasks, jnp.arange(classes)]  # [i, k]
    spaces = jnp.arange(num_tasks)
    is_later = is_seen & (tasks >= spaces[:, None])  # [space, k]: k has a mean in this space
    scores = jnp.where(is_later[:, None], similarity, -jnp.inf)
    weights = jnp.where(is_later.any(axis=1)[:, None, None], jax.nn.softmax(scores), 0)  # [space, i, k]
    synthesized = jnp.einsum("tik,ktd->itd", weights, means, precision="highest")
    own = (tasks[:, None] >= spaces)[:, :, None]
    return jnp.where((spaces <= last)[:, None] & is_seen[:, None, None], jnp.where(own, means, synthesized), 0)


class EASE(Learner):
    """Adapters of each task, and a `SubspaceHead`.

    Parameters: those of `bottlenecks.init_bottlenecks`, the adapters of the task. State: the same arrays of all tasks,
    with a leading axis of `num_tasks`.

    Attributes:
      rank: width of the bottleneck.
      scale: factor of the adapters' output.
      dropout: rate of dropout in the bottleneck.
      alpha: weight of the cosines in the spaces of other tasks.
      dim: width of the backbone.
      depth: number of blocks.
      num_tasks: of the stream.
    """

    uses_query: ClassVar[bool] = False
    needs_own_classes: ClassVar[str] = (
        "with learner 'ease' gives each class the adapters of one task and its prototypes in their space"
    )

    rank: int
    scale: float
    dropout: float
    alpha: float
    dim: int
    depth: int
    num_tasks: int

    @nn.nowrap
    def init_variables(self, key: jax.Array, query: jax.Array, backbone: Mapping[str, Any]) -> Variables:
        """Returns the adapters of the first task, which change nothing."""
        del query, backbone
        params = init_bottlenecks(key, self.depth, self.dim, self.rank)
        return {"params": params, "state": jax.tree.map(lambda p: jnp.zeros((self.num_tasks, *p.shape)), params)}

    @nn.compact
    def __call__(self, query: jax.Array, context: Context, train: bool) -> Selection:
        """Returns the adapters of the parameters."""
        key = context.key if train else None
        adapters = parallel_adapters(self.variables["params"], self.scale, self.dropout, key)
        return Selection({}, jnp.zeros(()), {}, adapters=adapters)

    @nn.nowrap
    def start_task(self, variables: Variables, context: Context, key: jax.Array) -> Variables:
        """Returns new adapters for each task but the first.

        The first task has the adapters of `init_variables`.
        """
        new = init_bottlenecks(key, self.depth, self.dim, self.rank)
        params = jax.tree.map(lambda a, b: jnp.where(context.task > 0, a, b), new, variables["params"])
        return {**variables, "params": params}

    @nn.nowrap
    def end_task(self, variables: Variables, context: Context) -> Variables:
        """Stores the adapters of the task."""
        return {**variables, "state": with_trained_set(variables, context)}

    @nn.nowrap
    def passes(self, variables: Variables, context: Context, train: bool) -> tuple[Variables, ...]:
        """Returns the adapters of the task, and in evaluation those of each task."""
        if train:
            return (variables,)
        adapters = with_trained_set(variables, context)
        return tuple(
            {**variables, "params": jax.tree.map(lambda rows, t=task: rows[t], adapters)}
            for task in range(self.num_tasks)
        )

    @nn.nowrap
    def join_features(self, features: tuple[jax.Array, ...], context: Context, train: bool) -> tuple[jax.Array, ...]:
        """Returns the features of all spaces.

        In training the features of the task's adapters are repeated for each space.
        """
        del context
        return (jnp.concatenate(features * (self.num_tasks if train else 1), axis=1),)

    @nn.nowrap
    def join_logits(self, logits: tuple[jax.Array, ...], context: Context, train: bool) -> jax.Array:
        """Returns the logits of the cosine classifier or of the prototypes.

        Training has those of the cosine classifier, evaluation those of the prototypes.
        """
        del context
        return select_logits(logits, train)

    @nn.nowrap
    def head(self, num_classes: int) -> SubspaceHead:
        """Returns the prototypes of all spaces."""
        return SubspaceHead(num_classes, self.num_tasks, self.alpha)


def build(options: ConfigDict, *, dim: int, key_dim: int, depth: int, num_tasks: int) -> EASE:
    """Returns the adapters of an option section, see `models.learners.base`."""
    del key_dim
    return EASE(**{key: options[key] for key in OPTIONS}, dim=dim, depth=depth, num_tasks=num_tasks)
