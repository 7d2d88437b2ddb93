"""Flax's layers without the repeated trace of initializers."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn
from flax.errors import ScopeParamShapeError


class ReadsParams:
    """Base of modules that return an existing parameter as it is.

    Flax traces the initializer of a parameter at each use, to compare the shape of its result. This takes a quarter of
    the time in which the steps of a ViT are traced. Here the shape is the initializer's first argument.
    """

    def param(self, name: str, init_fn: Callable, shape: tuple[int, ...], *init_args: Any, **init_kwargs: Any) -> Any:
        """Returns a parameter, which is created if it does not exist.

        Args:
          name: of the parameter.
          init_fn: initializer, a function of a key, the shape and the further arguments.
          shape: of the parameter.
          *init_args: positional arguments of the initializer.
          **init_kwargs: keyword arguments of the initializer and of `flax.linen.Module.param`.

        Raises:
          flax.errors.ScopeParamShapeError: the existing parameter has another shape.
        """
        if not self.has_variable("params", name):
            return super().param(name, init_fn, shape, *init_args, **init_kwargs)
        value = self.get_variable("params", name)
        if value.shape != tuple(shape):
            raise ScopeParamShapeError(name, self.scope.path_text, value.shape, tuple(shape))
        return value


class Dense(ReadsParams, nn.Dense):
    """`flax.linen.Dense`."""


class Conv(ReadsParams, nn.Conv):
    """`flax.linen.Conv`."""


class LayerNorm(ReadsParams, nn.LayerNorm):
    """`flax.linen.LayerNorm`."""
