"""Orders the classes of a data set, and the images behind its validation split."""

import operator
import random
from collections.abc import Sequence

import numpy as np

from cdl_jax import plugins
from cdl_jax.errors import UserError

SHUFFLES = ("python_shuffle", "shuffle")  # the values of data.class_order that depend on a seed


def order_classes(num_classes: int, class_order: str | Sequence[int], seed: int = 0) -> tuple[int, ...]:
    """Returns the class ids in stream order.

    >>> order_classes(4, "natural"), order_classes(4, "python_shuffle", seed=0)
    ((0, 1, 2, 3), (2, 0, 1, 3))
    >>> order_classes(4, "[3, 1]")
    (3, 1)

    Args:
      num_classes: of the data set.
      class_order: one of
        natural: 0, 1, 2, ... for every seed, as in the CDL trainer;
        python_shuffle: `random.seed(seed); random.shuffle(ids)`, as in CODA-Prompt and APT;
        shuffle: a permutation of NumPy's default generator;
        the ids: a list, a tuple, a NumPy array, or text with commas, in brackets or not.
      seed: of the shuffles.

    Raises:
      UserError: the word is unknown, or an id is out of range or listed twice.
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
            order = tuple(int(c) for c in class_order.strip(" ()[]").rstrip(",").split(","))
        else:
            order = tuple(map(operator.index, class_order))
    except (ValueError, TypeError):
        hint = plugins.did_you_mean(str(class_order), ("natural", *SHUFFLES))
        raise UserError(f"data.class_order={class_order!r}: {hint}, or class ids such as '5,0,7'") from None
    unknown = [c for c in order if not 0 <= c < num_classes]
    repeated = sorted({c for c in order if order.count(c) > 1})
    if unknown or repeated or not order:
        reason = "no class"
        if unknown:
            reason = f"{unknown[0]} is not a class id"
        elif repeated:
            reason = f"{repeated[0]} is listed twice"
        raise UserError(f"data.class_order: {reason}; list ids from 0 to {num_classes - 1}, each once")
    return order


def validation_permutation(n: int, seed: int) -> np.ndarray:
    """Shuffles training images before the last of them become the validation set.

    Source: CODA-Prompt, by NumPy's legacy generator.

    Args:
      n: number of training images.
      seed: of the shuffle.

    Returns:
      int `[n]`.
    """
    return np.random.RandomState(seed).permutation(n)
