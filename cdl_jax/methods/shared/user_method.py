"""Checks of a method's parts and of the return values of its functions.

The parts are checked after `build`, the return values while the functions are traced.
"""

import numbers
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict

from cdl_jax.errors import UserError
from cdl_jax.losses import Context
from cdl_jax.methods.base import Method, Outcome, Phase, Update, Variables
from cdl_jax.optim import Optimizer
from cdl_jax.plugins import (
    check_arguments,
    check_hooks,
    describe_class,
    describe_function,
    describe_type,
    errors_in_one_line,
)
from cdl_jax.runtime.tree_shapes import check_same

_TASKS = ("all", "first", "later", "none")


def check_method(method: Any, module: ModuleType) -> None:
    """Checks the type of a user's method, its hooks, and its phases.

    Args:
      method: the return value of `module.build`.
      module: the user's plug-in.

    Raises:
      UserError: the method does not fulfill the contract of `methods.base`. The message names the file, and the
        function or class.
    """
    if not isinstance(method, Method):
        raise UserError(
            f"{describe_function(module.build)} must return a {Method.__module__}.Method, but returns "
            f"{describe_type(method)}"
        )
    name = describe_class(type(method))
    check_hooks(type(method), Method)
    _check_tuple(method.networks, str, f"{name}: networks")
    _check_tuple(method.phases, Phase, f"{name}: phases")
    if not isinstance(method.image_size, int):
        raise UserError(f"{name}: image_size={method.image_size!r} must be an integer, the side of the images")
    for network in (*method.external, *method.headline, *(name for pair in method.pairs for name in pair)):
        if network not in method.networks:
            raise UserError(f"{name}: {network!r} is not one of its networks={method.networks!r}")
    for phase in method.phases:
        _check_phase(phase, name)
    with errors_in_one_line(module.__file__):
        _check_variables(method, name)


def check_loaded(method: Method, loaded: Any, shapes: Variables) -> None:
    """Checks what `load_pretrained` of a user's method returns.

    Args:
      method: named in messages.
      loaded: the return value, arrays or shapes.
      shapes: of the variables that `init` returns.

    Raises:
      UserError: other names, shapes or types.
    """
    _check_changed(loaded, shapes, f"{describe_class(type(method))}: load_pretrained")


def _check_variables(method, name):
    """Checks the variables of a method.

    Raises:
      UserError: the variables are no nested dict, or a task begins or ends, or a phase ends, with others.
    """
    variables = jax.eval_shape(method.init, jax.random.key(0))
    if not isinstance(variables, Mapping) or not variables:
        raise UserError(f"{name}: init must return a dict of variables, but returns {describe_type(variables)}")
    changes = {"start_task": method.start_task, "end_task": method.end_task}
    changes |= {f"finish of phase {phase.name!r}": phase.finish for phase in method.phases if phase.finish}
    for hook, change in changes.items():
        changed = jax.eval_shape(lambda v, f=change: f(v, Context.dummy()), variables)
        _check_changed(changed, variables, f"{name}: {hook}")


def _check_changed(changed, variables, what):
    if not isinstance(changed, Mapping):
        raise UserError(f"{what} must return a dict of variables, but returns {describe_type(changed)}")
    check_same(changed, variables, what)


def _check_phase(phase, name):
    """Checks the parts of a phase.

    Raises:
      UserError: a part has another type or value, or a function other arguments.
    """
    where = f"{name}: phase {phase.name!r}"
    if not isinstance(phase.epochs, int) or phase.epochs < 0:
        raise UserError(f"{where}: epochs={phase.epochs!r} must be an integer from 0 on")
    if phase.tasks not in _TASKS:
        raise UserError(f"{where}: tasks={phase.tasks!r} must be one of {', '.join(map(repr, _TASKS))}")
    if phase.finish is not None:
        check_arguments(phase.finish, "variables, context", f"{where}: finish")
    _check_tuple(phase.updates, Update, f"{where}: updates")
    for update in phase.updates:
        check_arguments(update.loss, "variables, batch, context", f"{where}: loss")
        check_arguments(update.trainable, "path", f"{where}: trainable")
        if not isinstance(update.repeats, int) or update.repeats < 1:
            raise UserError(f"{where}: repeats={update.repeats!r} must be an integer from 1 on")
        if not isinstance(update.optimizer, Optimizer):
            raise UserError(
                f"{where}: the optimizer must be a {Optimizer.__module__}.Optimizer, but is "
                f"{describe_type(update.optimizer)}: see cdl_jax.optim.build"
            )


def _check_tuple(values, kind, what):
    """Raises UserError if a value is no tuple of at least one item of a type."""
    if not isinstance(values, tuple) or not values:
        raise UserError(f"{what} must be a tuple of {kind.__name__}, such as (first,), but is {describe_type(values)}")
    for value in values:
        if not isinstance(value, kind):
            raise UserError(
                f"{what} must be a tuple of {kind.__name__}, but has an item that is {describe_type(value)}"
            )


def check_outcome(update: Update, value: Any, mutable: Variables) -> None:
    """Checks what the loss of an update returns, while it is traced.

    Args:
      update: named in messages.
      value: the return value.
      mutable: the variables that a step may change.

    Raises:
      UserError: it is not (scalar, Outcome) with scalars as metrics, has variables that the step cannot change, or has
        a batch in an update with `repeats`. The message names the file and the function.
    """
    if isinstance(value, tuple) and len(value) == 2 and isinstance(value[1], Outcome):
        loss, outcome = value
        metrics = outcome.metrics if isinstance(outcome.metrics, Mapping) else {"the metrics": outcome.metrics}
        bad = [name for name, part in [("the loss", loss), *metrics.items()] if not _is_scalar(part)]
        bad += [name for name in metrics if not isinstance(name, str)]
        unknown = [path for path in flatten_dict(outcome.variables) if path not in flatten_dict(mutable)]
        passed = list(outcome.batch) if update.repeats > 1 else []
        if not bad and not unknown and not passed:
            return
        if bad:
            found = f"{bad[0]!r} is no scalar with a name"
        elif unknown:
            found = f"its variables have {unknown[0]}, which init has not"
        else:
            found = f"its batch has {passed[0]!r}, and an update with repeats has no batch"
    elif isinstance(value, tuple) and len(value) == 2:
        found = f"the second value is of type {describe_type(value[1])}"
    else:
        found = f"returns {describe_type(value)}"
    where = f"{describe_function(update.loss)} must return (loss, {Outcome.__module__}.Outcome({{name: scalar}}))"
    raise UserError(f"{where}, but {found}")


def _is_scalar(value):
    return isinstance(value, numbers.Number) or getattr(value, "shape", None) == ()


def check_prediction(method: Method, value: Any, batch: int, num_classes: int) -> None:
    """Checks what `Method.predict` returns, while it is traced.

    Args:
      method: named in messages.
      value: the return value.
      batch: number of images.
      num_classes: of the stream.

    Raises:
      UserError: it is not ({network: logits}, {network: counts}), or lacks one of the method's networks. The message
        names the file and the class.
    """
    where = f"{describe_class(type(method))}: predict must return ({{network: logits}}, {{network: counts}})"
    if not isinstance(value, tuple) or len(value) != 2 or not all(isinstance(part, Mapping) for part in value):
        kinds = f"({', '.join(map(describe_type, value))})" if isinstance(value, tuple) else describe_type(value)
        raise UserError(f"{where}, but returns {kinds}")
    logits, _ = value
    if not set(method.networks) <= set(logits):
        raise UserError(f"{where} for its networks={method.networks!r}, but returns logits of {tuple(logits)!r}")
    for network, values in logits.items():
        if jnp.shape(values) != (batch, num_classes):
            raise UserError(
                f"{where}, but the logits of {network!r} are {list(jnp.shape(values))} for {batch} images of "
                f"{num_classes} classes"
            )


def check_extra_metrics(method: Method, value: Any, batch: int) -> None:
    """Checks what `Method.extra_metrics` returns, while it is traced.

    Args:
      method: named in messages.
      value: the return value.
      batch: number of images.

    Raises:
      UserError: it is not `{name: [batch]}`. The message names the file and the class.
    """
    shapes = [jnp.shape(part) for part in value.values()] if isinstance(value, Mapping) else [None]
    if any(shape != (batch,) for shape in shapes):
        raise UserError(
            f"{describe_class(type(method))}: extra_metrics must return a dict of arrays, one item an image"
        )
