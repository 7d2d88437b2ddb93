"""Small learners beyond prompts, one of each kind.

`config.learner.name=tests.support.tiny_learners` selects them.
"""

from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax.tree_util import Partial

from cdl_jax.models.learners.base import FittedHead, Learner, Pool, Selection
from cdl_jax.models.vit import Adapter, Prompt

OPTIONS = {"kind": "lora", "factor": 1.0, "tasks": "all"}

RANK = 2
RIDGE = 0.5
MEMORY = 0.75  # weight of the old moving average


class LoRA(Learner):
    """Adds A B to the kernel of queries, keys and values.

    Parameters: `a` `[depth, dim, rank]`, `b` `[depth, rank, 3 dim]`.
    """

    uses_query: ClassVar[bool] = False

    @nn.nowrap
    def init_variables(self, key, query, backbone):
        kernels = jnp.stack([leaf for path, leaf in flatten_dict(backbone).items() if path[2:] == ("qkv", "kernel")])
        shapes = {"a": (*kernels.shape[:2], RANK), "b": (len(kernels), RANK, kernels.shape[2])}
        normal = jax.random.normal(key, shapes["a"])
        return {"params": {"a": normal, "b": jnp.zeros(shapes["b"])}}

    @nn.nowrap
    def adapt_backbone(self, backbone, variables, context, train):
        flat = flatten_dict(backbone)
        for i, product in enumerate(variables["params"]["a"] @ variables["params"]["b"]):
            flat[f"block_{i}", "attn", "qkv", "kernel"] += product
        return unflatten_dict(flat)


class Adapters(Learner):
    """Scales the output of each block's attention, and adds a bottleneck to its MLP."""

    uses_query: ClassVar[bool] = False

    dim: int
    depth: int

    @nn.compact
    def __call__(self, query, context, train):
        scale = self.param("scale", nn.initializers.ones, (self.depth, self.dim))
        down = self.param("down", nn.initializers.normal(1.0), (self.depth, self.dim, RANK))
        up = self.param("up", nn.initializers.zeros, (self.depth, RANK, self.dim))
        adapters = {
            i: Adapter(attention=Partial(scaled, scale[i]), mlp=Partial(with_bottleneck, (down[i], up[i])))
            for i in range(self.depth)
        }
        return Selection({}, jnp.zeros(()), {}, adapters=adapters)


def scaled(scale, x, y):
    return scale * y


def with_bottleneck(kernels, x, y):
    down, up = kernels
    return y + nn.relu(x @ down) @ up


class RidgeHead(FittedHead):
    """Ridge regression from features to one-hot labels.

    `kernel` `[width, classes]` is state.
    """

    num_classes: int

    @nn.compact
    def __call__(self, features):
        return features @ self.variable("state", "kernel", jnp.zeros, (features.shape[-1], self.num_classes)).value

    @nn.nowrap
    def init_statistics(self, width):
        return {"gram": jnp.zeros((width, width)), "cross": jnp.zeros((width, self.num_classes))}

    @nn.nowrap
    def accumulate(self, statistics, features, labels, context):
        weighted = features * context.weight[:, None]
        one_hot = jax.nn.one_hot(labels, self.num_classes)
        return {"gram": statistics["gram"] + weighted.T @ features, "cross": statistics["cross"] + weighted.T @ one_hot}

    @nn.nowrap
    def fit(self, variables, statistics, context):
        matrix = statistics["gram"] + RIDGE * jnp.eye(len(statistics["gram"]))
        return {**variables, "state": {"kernel": jnp.linalg.solve(matrix, statistics["cross"])}}


class Ridge(Adapters):
    """Adapters that are trained in some tasks, and a ridge head that is fitted in all."""

    tasks: str

    @property
    def trained_tasks(self):
        return self.tasks

    @nn.nowrap
    def head(self, num_classes):
        return RidgeHead(num_classes)


class Biases(Learner):
    """Trains the biases of the backbone at another rate than the head."""

    uses_query: ClassVar[bool] = False

    factor: float

    @nn.nowrap
    def trains_backbone(self, path):
        return path[-1] == "bias"

    @nn.nowrap
    def learning_rate_factor(self, path):
        return self.factor if path[0] == "backbone" else 1.0


class Ensemble(Adapters):
    """Predicts with the trained adapters and with their moving average.

    The prediction is the average of the probabilities of both.
    """

    @nn.nowrap
    def init_variables(self, key, query, backbone):
        params = super().init_variables(key, query, backbone)["params"]
        return {"params": params, "state": {"average": params}}

    @nn.nowrap
    def passes(self, variables, context, train):
        return (variables,) if train else (variables, {"params": variables["state"]["average"]})

    @nn.nowrap
    def join_logits(self, logits, context, train):
        return logits[0] if train else jnp.log(sum(map(jax.nn.softmax, logits)) / len(logits))

    @nn.nowrap
    def update_state(self, variables, outputs, context):
        average = variables["state"]["average"]
        new = jax.tree.map(lambda a, p: MEMORY * a + (1 - MEMORY) * p, average, variables["params"])
        return {"average": new}


class Concatenated(Adapters):
    """Joins the features without and with adapters."""

    @nn.nowrap
    def passes(self, variables, context, train):
        identity = {
            "scale": jnp.ones_like(variables["params"]["scale"]),
            "up": jnp.zeros_like(variables["params"]["up"]),
        }
        return ({"params": {**variables["params"], **identity}}, variables)

    @nn.nowrap
    def join_features(self, features, context, train):
        return (jnp.concatenate(features, axis=-1),)


class OneStage(Learner):
    """Selects the prompt of the last block by the class token at its input.

    Selection and prediction share one forward pass.
    """

    uses_query: ClassVar[bool] = False

    dim: int
    depth: int

    @nn.compact
    def __call__(self, query, context, train):
        keys = self.param("keys", nn.initializers.normal(1.0), (3, self.dim))
        values = self.param("prompts", nn.initializers.normal(1.0), (3, 2, self.dim))
        return Selection({self.depth - 1: Partial(soft_prompt, (keys, values))}, jnp.zeros(()), {})

    @nn.nowrap
    def complete_selection(self, selection, variables, outputs, context, train):
        query = outputs[f"block_{self.depth - 2}/tokens"][:, 0]
        weights = jax.nn.softmax(query @ variables["params"]["keys"].T)
        loss = -weights.max(axis=1).mean() if train else jnp.zeros(())
        return selection.replace(loss=loss, selected={f"layer_{self.depth - 1}": weights})


def soft_prompt(arrays, class_token):
    keys, values = arrays
    rows = jnp.einsum("bk,kld->bld", jax.nn.softmax(class_token @ keys.T), values)
    return Prompt(prefix=(rows[:, :1], rows[:, 1:]))


class BiasesWithQueries(Pool):
    """Trains the backbone that computes its queries, which is refused."""

    @nn.nowrap
    def trains_backbone(self, path):
        return True


class TwoFeatures(Ridge):
    """Leaves two arrays of features to one closed form, which is refused."""

    @nn.nowrap
    def passes(self, variables, context, train):
        return (variables, variables)


def build(options, *, dim, key_dim, depth, num_tasks):
    sizes = {"dim": dim, "depth": depth}
    return {
        "lora": LoRA,
        "adapters": lambda: Adapters(**sizes),
        "ridge": lambda: Ridge(**sizes, tasks=options.tasks),
        "biases": lambda: Biases(options.factor),
        "ensemble": lambda: Ensemble(**sizes),
        "concatenated": lambda: Concatenated(**sizes),
        "one_stage": lambda: OneStage(**sizes),
        "biases_with_queries": BiasesWithQueries,
        "two_features": lambda: TwoFeatures(**sizes, tasks="all"),
    }[options.kind]()
