"""A method of fixed parts, for tests of what surrounds methods."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from cdl_jax.methods.base import Method


@dataclass(frozen=True, kw_only=True, eq=False)
class FixedMethod(Method):
    """Has the given attributes and the given prediction.

    Attributes:
      prediction: `(variables, images, context) -> (logits, counts)`.
      frozen: top-level name of the frozen variables.
    """

    networks: tuple[str, ...] = ()
    phases: tuple = ()
    image_size: int = 1
    prediction: Callable | None = None
    frozen: str = ""
    pairs: tuple = ()
    bookkeeping: frozenset = frozenset()
    mean_groups: Mapping = field(default_factory=dict)
    stream_of: Mapping = field(default_factory=dict)

    def init(self, key):
        return {}

    def predict(self, variables, images, context):
        return self.prediction(variables, images, context)

    def is_frozen(self, path):
        return path[0] == self.frozen
