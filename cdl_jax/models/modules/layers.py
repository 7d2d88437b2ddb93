"""Flax's layers without the repeated trace of initializers."""

from collections.abc import Callable
from typing import Any

import flax.linen as nn


class ReadsParams:
    """Base of modules that return an existing parameter as it is.

    Flax traces the initializer of a parameter at each use, because it compares the shapes. This takes a quarter of the
    time in which the steps of a ViT are traced. Here shapes are compared once: when weights are loaded.
    """

    def param(self, name: str, init_fn: Callable, *init_args: Any, **init_kwargs: Any) -> Any:
        """Returns a parameter, which is created if it does not exist.

        Args:
          name: of the parameter.
          init_fn: initializer, a function of a key and the further arguments.
          *init_args: positional arguments of the initializer.
          **init_kwargs: keyword arguments of the initializer and of `flax.linen.Module.param`.
        """
        if self.has_variable("params", name):
            return self.get_variable("params", name)
        return super().param(name, init_fn, *init_args, **init_kwargs)


class Dense(ReadsParams, nn.Dense):
    """`flax.linen.Dense`."""


class Conv(ReadsParams, nn.Conv):
    """`flax.linen.Conv`."""


class LayerNorm(ReadsParams, nn.LayerNorm):
    """`flax.linen.LayerNorm`."""
