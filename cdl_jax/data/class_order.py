"""The order in which a stream meets the classes of a data set, and the order behind the validation split."""

import operator
import random
from collections.abc import Sequence

import numpy as np

from cdl_jax import plugins
from cdl_jax.errors import UserError

SHUFFLES = ("python_shuffle", "shuffle")  # the values of data.class_order that depend on a seed


def order_classes(num_classes: int, class_order: str | Sequence[int], seed: int = 0) -> tuple[int, ...]:
    """Class ids in stream order.

    natural: 0, 1, 2, ... for every seed, as the CDL trainer has it.
    python_shuffle: `random.seed(seed); random.shuffle(ids)`, as CODA-Prompt and APT have it.
    shuffle: a permutation of NumPy's default generator.
    Anything else lists the ids: a list, a tuple, a NumPy array, or text with commas, in brackets or not.

    Raises:
      UserError: an unknown word, an id out of range or one listed twice.
    """
    ids = list(range(num_classes))
    class_order = class_order if isinstance(class_order, str) else tuple(class_order)
    if class_order == "natural":
        return tuple(ids)
    if class_order == "python_shuffle":
        random.Random(seed).shuffle(ids)
        return tuple(ids)
    if class_order == "shuffle":
        return tuple(np.random.default_rng(seed).permutation(num_classes).tolist())
    try:
        if isinstance(class_order, str):
            listed = tuple(int(c) for c in class_order.strip(" ()[]").rstrip(",").split(","))
        else:
            listed = tuple(map(operator.index, class_order))
    except (ValueError, TypeError):
        hint = plugins.did_you_mean(str(class_order), ("natural", *SHUFFLES))
        raise UserError(f"data.class_order={class_order!r}: {hint}, or class ids such as '5,0,7'") from None
    outside = [c for c in listed if not 0 <= c < num_classes]
    twice = sorted({c for c in listed if listed.count(c) > 1})
    if outside or twice or not listed:
        what = f"{outside[0]} is no class id" if outside else f"{twice[0]} is listed twice" if twice else "no class"
        raise UserError(f"data.class_order: {what}; list ids from 0 to {num_classes - 1}, each once")
    return listed


def validation_permutation(n: int, seed: int) -> np.ndarray:
    """int `[n]`: how CODA-Prompt shuffles its training pictures before holding out the last (NumPy's old generator)."""
    return np.random.RandomState(seed).permutation(n)
