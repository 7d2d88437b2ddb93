"""Checks of a user's learner.

The checks come before any data is placed and any program is compiled. A user's learner is one with a dotted path as its
name. Its hooks are traced once with the shapes of the network.
"""

import math
import numbers
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.traverse_util import flatten_dict, unflatten_dict

from cdl_jax.errors import UserError
from cdl_jax.losses import Context
from cdl_jax.models.learners.base import FittedHead, Learner
from cdl_jax.plugins import check_hooks, describe_class, errors_in_one_line
from cdl_jax.runtime.tree_shapes import check_same

_TRAINED_TASKS = ("all", "first", "none")
_BATCH = 2


def check_learner(learner: Learner) -> None:
    """Checks the hooks of a learner and its attributes.

    Raises:
      UserError: a hook has other arguments, a name resembles that of a hook, or `trained_tasks` has an unknown value.
    """
    check_hooks(type(learner), Learner)
    if learner.trained_tasks not in _TRAINED_TASKS:
        choices = ", ".join(map(repr, _TRAINED_TASKS))
        raise UserError(
            f"{describe_class(type(learner))}: trained_tasks={learner.trained_tasks!r} must be one of {choices}"
        )


def check_head(learner: Learner, head: Any) -> None:
    """Checks the return value of `Learner.head`.

    Raises:
      UserError: the head is no Flax module, or is a `FittedHead` without one of its hooks.
    """
    if not isinstance(head, nn.Module):
        raise UserError(
            f"{describe_class(type(learner))}: head must return a flax.linen.Module, but returns {type(head).__name__}"
        )
    if not isinstance(head, FittedHead):
        return
    check_hooks(type(head), FittedHead)
    for name in ("init_statistics", "accumulate", "fit"):
        if getattr(type(head), name) is getattr(FittedHead, name):
            raise UserError(f"{describe_class(type(head))}: a FittedHead must define {name}")


def check_network(network: Any, query_dim: int, num_classes: int, path: str) -> None:
    """Traces a network with a user's learner, and checks what its hooks return.

    The hooks are those of the learner and of the head.

    Args:
      network: a `prompted.PromptedNetwork`, whose learner and head have passed the checks above.
      query_dim: width of the queries.
      num_classes: of the stream.
      path: file of the plug-in.

    Raises:
      UserError: a hook raises an error, or returns something else than `models.learners.base` describes. The message
        names the file and the hook.
    """
    with errors_in_one_line(path):
        own = _check_initial_variables(network, query_dim)
        for train in (True, False):
            width = _check_features(network, own, train)
        variables = jax.eval_shape(lambda key: network.init(key, query_dim), jax.random.key(0))
        _check_trained_leaves(network, variables)
        _check_changes(network, variables)
        for train in (True, False):
            _check_outputs(network, variables, query_dim, num_classes, train)
        if network.is_fitted:
            _check_fit(network.head, variables, width)


def _check_initial_variables(network, query_dim):
    """Returns the shapes of the learner's variables.

    Variables other than "params" and "state" are refused.
    """
    learner, key = network.learner, jax.random.key(0)
    images = jnp.zeros((1, network.image_size, network.image_size, 3))
    backbone = jax.eval_shape(network.backbone.init, key, images)["params"]
    network.check_queries(backbone)
    query = jnp.zeros((1, query_dim))
    declared = jax.eval_shape(lambda tree: learner.init_variables(key, query, tree), backbone)
    what = f"{describe_class(type(learner))}: init_variables"
    if not isinstance(declared, Mapping):
        raise UserError(f'{what} must return {{"params": ..., "state": ...}}, but returns {_name(declared)}')
    if unknown := [name for name in declared if name not in ("params", "state")]:
        raise UserError(f'{what} returns {unknown[0]!r}, but the variables of a learner are "params" and "state"')
    return {"params": {}, "state": {}, **declared}


def _check_features(network, own, train):
    """Returns the width of the features of the head.

    Passes and features that are no tuples are refused.
    """
    learner, name = network.learner, describe_class(type(network.learner))

    def features(own):
        passes = learner.passes(own, Context.dummy(), train)
        if not isinstance(passes, tuple) or not passes:
            raise UserError(f"{name}: passes must return a tuple of variables, but returns {_name(passes)}")
        of_passes = tuple(jnp.zeros((_BATCH, network.backbone.dim)) for _ in passes)
        joined = learner.join_features(of_passes, Context.dummy(), train)
        if not isinstance(joined, tuple) or not joined:
            raise UserError(f"{name}: join_features must return a tuple of arrays, but returns {_name(joined)}")
        return joined

    return jax.eval_shape(features, own)[0].shape[-1]


def _check_trained_leaves(network, variables):
    """Checks the trained leaves and their learning rates.

    A `trains_backbone` that selects no leaf is refused, and so are factors of learning rates that are no numbers.
    """
    learner, name = network.learner, describe_class(type(network.learner))
    if type(learner).trains_backbone is not Learner.trains_backbone:
        paths = list(flatten_dict(variables["backbone"]))
        if not any(map(learner.trains_backbone, paths)):
            raise UserError(
                f"{name}: trains_backbone selects no leaf of the backbone: its paths are such as {paths[0]}; leave the "
                "function out to train none"
            )
    for path in flatten_dict({key: tree for key, tree in variables.items() if key != "state"}):
        if network.is_trained(path):
            factor = learner.learning_rate_factor(path)
            if not isinstance(factor, numbers.Real) or not 0 <= factor < math.inf:
                raise UserError(f"{name}: learning_rate_factor must return a number from 0 on, but returns {factor!r} "
                                f"for {path}")  # fmt: skip


def _check_changes(network, variables):
    """Refuses changes of variables that do not keep their names, shapes and types."""
    learner, context, key = network.learner, Context.dummy(), jax.random.key(0)
    name = describe_class(type(learner))
    own = {"params": variables["prompts"], "state": variables["state"]["prompts"]}
    changes = {
        "start_task": lambda v: learner.start_task(v, context, key),
        "end_task": lambda v: learner.end_task(v, context),
        "teacher_variables": learner.teacher_variables,
    }
    for hook, change in changes.items():
        returned = jax.eval_shape(change, own)
        _check_mapping(returned, f"{name}: {hook}")
        check_same({"params": {}, "state": {}, **returned}, own, f"{name}: {hook}")
    backbone = variables["backbone"]
    for train in (True, False):
        adapted = jax.eval_shape(lambda b, v, t=train: learner.adapt_backbone(b, v, context, t), backbone, own)
        check_same(adapted, backbone, f"{name}: adapt_backbone")


def _check_outputs(network, variables, query_dim, num_classes, train):
    """Checks the prediction and the new state.

    A prediction that is not `[batch, classes]` is refused, and so is a new state that differs from the old one.
    """
    learner, name, side = network.learner, describe_class(type(network.learner)), network.image_size
    images, query = jnp.zeros((_BATCH, side, side, 3)), jnp.zeros((_BATCH, query_dim))

    def forward(variables):
        own = {"params": variables["prompts"], "state": variables["state"]["prompts"]}
        out = network(variables, images, query, Context.dummy(), train)
        return out["logits"], learner.update_state(own, out, Context.dummy()) if train else {}

    logits, state = jax.eval_shape(forward, variables)
    if getattr(logits, "shape", None) != (_BATCH, num_classes):
        raise UserError(
            f"{name}: logits must be [{_BATCH}, {num_classes}] for {_BATCH} images of {num_classes} classes, but are "
            f"{_name(logits)}; they come from the head and join_logits"
        )
    _check_mapping(state, f"{name}: update_state")
    old = variables["state"]["prompts"]
    merged = {**flatten_dict(old), **flatten_dict(state)}
    check_same(unflatten_dict(merged), old, f"{name}: update_state")


def _check_fit(head, variables, width):
    """Checks the statistics and variables of a `FittedHead`.

    Statistics and variables that do not keep their names, shapes and types are refused.
    """
    own = {"params": variables["head"], "state": variables["state"]["head"]}
    name, statistics = describe_class(type(head)), variables["state"]["statistics"]
    features, labels = jnp.zeros((_BATCH, width)), jnp.zeros(_BATCH, jnp.int32)
    context = Context.dummy().replace(weight=jnp.ones(_BATCH))
    features = jax.eval_shape(head.statistics_input, own, features)
    added = jax.eval_shape(lambda s, x: head.accumulate(s, x, labels, context), statistics, features)
    check_same(added, statistics, f"{name}: accumulate")
    fitted = jax.eval_shape(lambda v, s: head.fit(v, s, Context.dummy()), own, statistics)
    _check_mapping(fitted, f"{name}: fit")
    check_same({"params": {}, "state": {}, **fitted}, own, f"{name}: fit")


def _check_mapping(value, what):
    if not isinstance(value, Mapping):
        raise UserError(f"{what} must return a dict of variables, but returns {_name(value)}")


def _name(value):
    """Returns shape or type of what a hook returns, for a message."""
    return str(list(value.shape)) if hasattr(value, "shape") else type(value).__name__
