"""Orders classes and the images behind a validation split, and selects images."""

import operator
import random
from collections.abc import Sequence

import numpy as np

from cdl_jax import plugins
from cdl_jax.data.readers import image_lists
from cdl_jax.errors import UserError

SHUFFLES = ("python_shuffle", "numpy_shuffle", "shuffle")  # the values of data.class_order that depend on a seed


def order_classes(
    num_classes: int, class_order: str | Sequence[int] | Sequence[str], seed: int = 0, class_names: Sequence[str] = ()
) -> tuple[int, ...]:
    """Returns the class ids in stream order.

    >>> order_classes(4, "natural"), order_classes(4, "python_shuffle", seed=0)
    ((0, 1, 2, 3), (2, 0, 1, 3))
    >>> order_classes(4, "[3, 1]"), order_classes(3, "dog,ant", class_names=("ant", "cat", "dog"))
    ((3, 1), (2, 0))

    Args:
      num_classes: of the data set.
      class_order: one of
        natural: 0, 1, 2, ... for every seed, as in the CDL trainer;
        python_shuffle: `random.seed(seed); random.shuffle(ids)`, as in CODA-Prompt and APT;
        numpy_shuffle: `numpy.random.seed(seed); numpy.random.permutation(classes)`, as in PyCIL and PILOT, whose usual
          seed is 1993;
        shuffle: a permutation of NumPy's default generator;
        the ids: a list, a tuple, a NumPy array, or text with commas, in brackets or not;
        the names: a list, a tuple, text with commas, or text with one name a line;
        a file: a path that ends in .txt, with one name or id a line.
      seed: of the shuffles.
      class_names: of the data set, in the order of ids. Empty: names are unknown.

    Raises:
      UserError: the word, a name or the file is unknown, or an id is out of range or listed twice.
    """
    ids = list(range(num_classes))
    class_order = class_order if isinstance(class_order, str) else tuple(class_order)
    if class_order == "natural":
        return tuple(ids)
    if class_order == "python_shuffle":
        random.Random(seed).shuffle(ids)
        return tuple(ids)
    if class_order == "numpy_shuffle":
        return tuple(np.random.RandomState(seed).permutation(num_classes).tolist())
    if class_order == "shuffle":
        return tuple(np.random.default_rng(seed).permutation(num_classes).tolist())
    order = _listed_ids(class_order, list(class_names))
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


def _listed_ids(class_order, names) -> tuple[int, ...]:
    """Returns the ids of a list of ids or names, of text, or of a file."""
    is_file = isinstance(class_order, str) and class_order.endswith(".txt") and "\n" not in class_order
    if is_file:
        items = image_lists.read_names(class_order, "data.class_order")
    elif isinstance(class_order, str) and "\n" in class_order:
        items = [line.strip() for line in class_order.splitlines() if line.strip()]
    elif isinstance(class_order, str):
        items = [item.strip() for item in class_order.strip(" ()[]").rstrip(",").split(",")]
    else:
        items = list(class_order)
    if is_file and items and {*items} <= {*names}:
        return _ids_of_names(items, names)
    try:
        return tuple(int(item) if isinstance(item, str) else operator.index(item) for item in items)
    except (ValueError, TypeError):
        pass
    if not all(isinstance(item, str) for item in items) or len(items) == 1 and items[0] not in names:
        hint = plugins.did_you_mean(str(class_order), ("natural", *SHUFFLES))
        raise UserError(
            f"data.class_order={class_order!r}: {hint}; or a .txt file with one class a line, names of classes, or "
            "class ids such as '5,0,7'"
        )
    return _ids_of_names(items, names)


def _ids_of_names(items, names):
    for item in items:
        if names.count(item) != 1:
            reason = f"{names.count(item)} classes have the name {item!r}" if item in names else f"no class {item!r}"
            raise UserError(f"data.class_order: {reason}; {plugins.did_you_mean(item, names)}; or list class ids")
    return tuple(names.index(item) for item in items)


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


def random_subset(n: int, size: int, seed: int) -> np.ndarray:
    """Selects training images at random, without balance over the classes.

    Source: the runs of DiffAugment, LeCam and KD-DLGAN with few images, by NumPy's legacy generator. Their seed is 0,
    and images are in the order of CIFAR's files.

    >>> random_subset(6, 3, seed=0).tolist()
    [5, 2, 1]

    Args:
      n: number of training images.
      size: number of selected images, at most n.
      seed: of the selection.

    Returns:
      int `[size]`, rows in the order of the selection.
    """
    return np.random.RandomState(seed).choice(n, size, replace=False)
