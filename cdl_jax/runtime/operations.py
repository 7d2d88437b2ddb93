"""Counts the operations and the bytes of matrix products and convolutions.

The counted function is not compiled.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import jax
from jax.extend.core import ClosedJaxpr, Jaxpr, JaxprEqn
from jax.interpreters import partial_eval


@dataclass(frozen=True)
class Work:
    """Work of a function.

    Attributes:
      flops: floating-point operations, two for a multiply-add.
      bytes: of the operands and the result of each product, once each.
    """

    flops: float = 0.0
    bytes: float = 0.0

    def __add__(self, other: "Work") -> "Work":
        return Work(self.flops + other.flops, self.bytes + other.bytes)

    def __mul__(self, times: float) -> "Work":
        return Work(self.flops * times, self.bytes * times)


def count(function: Callable[..., Any], *arguments: Any) -> Work:
    """Counts the matrix products and convolutions of a function.

    Only those that the results of the function depend on are counted. A scan counts as often as it repeats, a condition
    as its largest branch, and a loop of unknown length once. Work on the devices of a mesh is added up. Elementwise
    operations, gathers and callbacks are not counted.

    Args:
      function: of arrays.
      arguments: arrays or their shapes.

    >>> vector, matrix = (jax.ShapeDtypeStruct(shape, "float32") for shape in ((3,), (3, 5)))
    >>> count(lambda x, w: x @ w, vector, matrix)
    Work(flops=30.0, bytes=92.0)
    """
    jaxpr = jax.make_jaxpr(function)(*arguments).jaxpr
    needed, _ = partial_eval.dce_jaxpr(jaxpr, [True] * len(jaxpr.outvars))
    return _work(needed)


def _work(jaxpr: Jaxpr) -> Work:
    return sum(map(_work_of_equation, jaxpr.eqns), Work())


def _work_of_equation(equation: JaxprEqn) -> Work:
    name, params = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = params["dimension_numbers"]
        return _product(equation, math.prod(equation.invars[0].aval.shape[axis] for axis in contracted))
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        return _product(equation, math.prod(kernel) // kernel[params["dimension_numbers"].rhs_spec[0]])
    inner = [_work(jaxpr) for jaxpr in _jaxprs(params)]
    if name == "cond":
        return max(inner, key=lambda work: work.flops)
    repeats = {"scan": "length", "shard_map": "mesh"}.get(name)
    times = getattr(params[repeats], "size", params[repeats]) if repeats else 1
    return sum(inner, Work()) * times


def _product(equation, terms):
    """Returns the work of an equation whose results are sums of `terms` products."""
    (result,) = (variable.aval for variable in equation.outvars)
    arrays = [variable.aval for variable in equation.invars[:2]] + [result]
    return Work(2.0 * terms * result.size, float(sum(x.size * x.dtype.itemsize for x in arrays)))


def _jaxprs(params: Any) -> Iterator[Jaxpr]:
    """Yields the programs within the parameters of an equation."""
    for value in params.values() if isinstance(params, dict) else params:
        if isinstance(value, ClosedJaxpr):
            yield value.jaxpr
        elif isinstance(value, Jaxpr):
            yield value
        elif isinstance(value, tuple | list):
            yield from _jaxprs(value)
