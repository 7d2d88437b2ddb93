"""Declarations of options: default, meaning, range and choices in one place.

A plug-in declares its options in a dict. Validation, `--help` and the reference pages are derived from it:

    OPTIONS = {
        "alpha": Option(0.5, "weight of the distillation loss", maximum=1),
        "classes": Option("current", "classes of the softmax", choices=("current", "seen")),
    }

A value that is not an `Option` declares a default without a meaning. Dicts nest, as in `{"log": {"report": True}}`.
"""

import numbers
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from cdl_jax.errors import UserError
from cdl_jax.plugins import did_you_mean

_LIMIT = 2**31  # numbers of a config are below it: compiled steps have them as int32 or float32
_LISTED = 3  # choices that a message lists; from more it suggests the closest
_KINDS = {int: "integers", float: "numbers", str: "text that is not empty"}
_TYPES = {int: numbers.Integral, float: numbers.Real, str: str}


@dataclass(frozen=True)
class Option:
    """An option of a config.

    Choices and bounds hold for each item of a tuple. Numbers are finite and at least 0, unless `minimum`
    or `above` is given.

    >>> Option(0.5, maximum=1).range
    '[0, 1]'

    Attributes:
      default: the default value; its type is the type of the option.
      meaning: one sentence or phrase.
      choices: the permitted values, default any.
      minimum: the lowest value, default 0; None: no lower bound.
      maximum: the highest value, default None.
      above: exclusive lower bound, which replaces `minimum`, default None.
      below: exclusive upper bound, which replaces `maximum`, default None.
      item_type: type of the items of a tuple, default the type of the first item.
      lengths: the permitted lengths of a tuple, default any.
      reason: what is wrong with a number out of range, for the message.
      resumable: whether a run may be resumed with another value: the option changes neither weights nor metrics.
    """

    default: Any
    meaning: str = ""
    choices: tuple[Any, ...] = ()
    minimum: float | None = 0
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    item_type: type | None = None
    lengths: tuple[int, ...] = ()
    reason: str = ""
    resumable: bool = False

    @property
    def range(self) -> str:
        """The permitted values as text, empty if any value of the default's type is valid."""
        if self.choices:
            return _join(self.choices)
        if type(self.default) is bool:
            return "True or False"
        if self._kind not in (int, float):
            return ""
        return self._bounds

    @property
    def _kind(self) -> type:
        """The type of the value, or of the items of a tuple; `object` if it is unknown."""
        if not isinstance(self.default, tuple | list):
            return type(self.default)
        return self.item_type or (type(self.default[0]) if self.default else object)

    @property
    def _bounds(self) -> str:
        lower = self.minimum if self.above is None else self.above
        upper = self.maximum if self.below is None else self.below
        if lower is not None and upper is not None:
            return f"{'[' if self.above is None else '('}{lower:g}, {upper:g}{']' if self.below is None else ')'}"
        if lower is not None:
            return f"{'at least' if self.above is None else 'above'} {lower:g}"
        return "any number" if upper is None else f"{'at most' if self.below is None else 'below'} {upper:g}"

    def problem(self, value: Any) -> str:
        """Returns what is wrong with a value; empty if the value is valid.

        The text follows `config.key=value` in a message.

        >>> Option(1.0, above=0).problem(0.0), Option("a", choices=("a", "b")).problem("b")
        (' must be above 0', '')
        """
        many = isinstance(value, tuple | list)
        items = value if many else (value,)
        if many and self.lengths and len(value) not in self.lengths:
            return f" must have {_join(self.lengths)} items"
        if many and isinstance(self.default, tuple | list) and not all(_has_kind(item, self._kind) for item in items):
            return f" must be {_KINDS[self._kind]}"
        return next(filter(None, map(self._item_problem, items)), "")

    def _item_problem(self, value):
        if self.choices and value not in self.choices:
            use = f"use {_join(self.choices)}"
            return f": {use if len(self.choices) <= _LISTED else did_you_mean(str(value), self.choices)}"
        if not _has_kind(value, float):
            return ""
        if not abs(value) < _LIMIT:  # NaN too
            return f" must be a number less than {_LIMIT}"
        is_low = value <= self.above if self.above is not None else self.minimum is not None and value < self.minimum
        is_high = value >= self.below if self.below is not None else self.maximum is not None and value > self.maximum
        if not (is_low or is_high):
            return ""
        bounds = self._bounds
        must = "not be negative" if bounds == "at least 0" else f"lie in {bounds}" if "," in bounds else f"be {bounds}"
        return f" must {must}" + f": {self.reason}" * bool(self.reason)


def _has_kind(value, kind):
    if kind not in _KINDS:
        return True
    return isinstance(value, _TYPES[kind]) and not isinstance(value, bool) and value != ""


def _join(choices):
    """Returns "1", "1 or 2", "1, 2 or 3"."""
    *rest, last = map(repr, choices)
    return f"{', '.join(rest)} or {last}" if rest else last


def declare(value: Any) -> Option:
    """Returns an `Option` as it is, and any other value as the default of one."""
    return value if isinstance(value, Option) else Option(value)


def defaults(declared: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Returns the default values of declared options, as nested dicts.

    Args:
      declared: options by name; sections are dicts.
      **changes: values that replace defaults.

    >>> defaults({"alpha": Option(0.5, "a weight"), "beta": 2, "part": {"rate": Option(0.1)}}, beta=3)
    {'alpha': 0.5, 'beta': 3, 'part': {'rate': 0.1}}
    """
    values = {key: defaults(x) if isinstance(x, Mapping) else declare(x).default for key, x in declared.items()}
    return {**values, **changes}


def change_defaults(declared: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """Returns the same declarations with other defaults.

    >>> change_defaults({"alpha": Option(0.5, "a weight", maximum=1)}, alpha=0.9)["alpha"].problem(2)
    ' must lie in [0, 1]'
    """
    return {**declared, **{key: replace(declare(declared[key]), default=value) for key, value in changes.items()}}


def check(declared: Mapping[str, Any], values: Mapping[str, Any], section: str = "") -> None:
    """Checks values by their declarations.

    Values without a declaration are not checked.

    Args:
      declared: options by name; sections are dicts.
      values: a section of a config, or some of its values.
      section: name of the section, such as "distill"; default: the values are a config.

    Raises:
      UserError: a value is not permitted. The message names the key and what is permitted.

    >>> check({"alpha": Option(0.5, "a weight", maximum=1)}, {"alpha": 1.0}, "distill")
    """
    for key, option in declared.items():
        path = f"{section}.{key}" if section else key
        if key not in values:
            continue
        value = values[key]
        if isinstance(option, Mapping):
            check(option, value, path)
        elif problem := declare(option).problem(value):
            raise UserError(f"config.{path}={tuple(value) if isinstance(value, list) else value!r}{problem}")


class Row(NamedTuple):
    """An option in a table.

    key: with its sections, such as "train.epochs".
    option: the declaration.
    """

    key: str
    option: Option


def rows(declared: Mapping[str, Any], prefix: str = "") -> Iterator[Row]:
    """Yields all options in the order of their declarations.

    Args:
      declared: options by name; sections are dicts.
      prefix: put before every key, such as "train.".

    >>> [(row.key, row.option.range) for row in rows({"part": {"rate": Option(0.1, above=0)}})]
    [('part.rate', 'above 0')]
    """
    for key, option in declared.items():
        if isinstance(option, Mapping):
            yield from rows(option, f"{prefix}{key}.")
        else:
            yield Row(f"{prefix}{key}", declare(option))
