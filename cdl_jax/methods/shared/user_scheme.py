"""Checks of a user's distillation scheme.

The checks come before any data is placed and any program is compiled.
"""

from collections.abc import Mapping
from dataclasses import replace
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from cdl_jax.distill.base import Scheme
from cdl_jax.errors import UserError
from cdl_jax.losses import Context
from cdl_jax.plugins import check_arguments, describe_function, describe_type, explain_error

# Field of a `Scheme` -> arguments with which the method calls it.
_ARGUMENTS = {
    "loss": "variables, student, teacher, labels, context",
    "init": "key",
    "start_task": "variables, context, key",
    "student_inputs": "variables, teacher, batch_size, context, train",
    "second_head": "variables, student",
}


def check_fields(scheme: Any, module: ModuleType) -> None:
    """Checks the type of a scheme and the arguments of its functions.

    Args:
      scheme: the return value of `module.build`.
      module: the user's plug-in.

    Raises:
      UserError: the scheme is not a `Scheme`, a function has other arguments, or `needs` is not a tuple of names. The
        message names file and function.
    """
    build = describe_function(module.build)
    if not isinstance(scheme, Scheme):
        raise UserError(f"{build} must return a cdl_jax.distill.base.Scheme, but returns {type(scheme).__name__}")
    for field, arguments in _ARGUMENTS.items():
        function = getattr(scheme, field)
        if function is not None or field != "second_head":
            check_arguments(function, arguments, f"{build}: {field} of the scheme")
    if not isinstance(scheme.needs, tuple) or not all(isinstance(name, str) for name in scheme.needs):
        raise UserError(f"{build}: needs={scheme.needs!r} must be a tuple of names of the teacher's outputs")


def check_loss(method: Any, module: ModuleType) -> None:
    """Checks what a scheme reads and returns, by one trace of the student's loss.

    The loss is not compiled.

    Args:
      method: of the kind `cdl`, with the scheme in its field `models`.
      module: the user's plug-in.

    Raises:
      UserError: the teacher has no output of a name in `needs`, the scheme reads another output of the teacher, the
        loss does not return a scalar and a dict of scalars, or a function of the plug-in raises an error. The message
        names the file, and the function or line.
    """
    scheme, size = method.models.scheme, method.image_size

    def checked_loss(variables, student, teacher, labels, context):
        for name in scheme.needs:
            if name not in teacher:
                outputs = ", ".join(sorted(teacher))
                raise UserError(
                    f"{describe_function(module.build)}: needs names {name!r}, which is not an output of the teacher "
                    f"({outputs})"
                )
        value = _with_declared(scheme, scheme.loss, (variables, student), teacher, (labels, context))
        _check_value(scheme.loss, value)
        return value

    def checked_inputs(variables, teacher, *rest):
        return _with_declared(scheme, scheme.student_inputs, (variables,), teacher, rest)

    checked = replace(scheme, loss=checked_loss, student_inputs=checked_inputs)
    traced = replace(method, models=replace(method.models, scheme=checked))
    batch = {"images": jnp.zeros((2, size, size, 3)), "labels": jnp.zeros(2, jnp.int32)}
    try:
        jax.eval_shape(lambda key: traced.student_loss(traced.init(key), batch, Context.dummy()), jax.random.key(0))
    except UserError:
        raise
    except Exception as error:  # a plug-in is a program of the user's
        if (line := explain_error(error)) is None:
            raise
        raise UserError(line) from error


def _with_declared(scheme, function, first, teacher, last):
    """Calls a function of the scheme with the teacher outputs that `needs` names.

    Raises:
      UserError: the function needs another output, which a teacher of a finished run may lack.
    """
    declared = {name: value for name, value in teacher.items() if name in scheme.needs}
    try:
        return function(*first, declared, *last)
    except KeyError as error:
        name = error.args[0] if error.args else None
        if name not in teacher or name in declared:
            raise
        function(*first, teacher, *last)  # the same error: another dict lacks this key
        raise UserError(
            f"{describe_function(function)} reads {name!r} of the teacher: name it in the needs of the scheme"
        ) from None


def _check_value(loss, value):
    """Raises UserError if the value of a loss is not (scalar, {name: scalar})."""
    where = f"{describe_function(loss)} must return (loss, {{name: scalar}})"
    if not isinstance(value, tuple) or len(value) != 2:
        raise UserError(f"{where}, but returns {describe_type(value)}")
    total, parts = value
    if not isinstance(parts, Mapping):
        raise UserError(f"{where}, but the second value is of type {type(parts).__name__}")
    for name, part in {"the loss": total, **parts}.items():
        if jnp.shape(part) != ():
            raise UserError(f"{where}, but {name} has the shape {list(jnp.shape(part))} instead of that of a scalar")
