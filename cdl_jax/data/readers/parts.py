"""Divides the images of class folders into a training and a test set.

The parts are those of `layouts.find`: `{part: {class: images}}`.
"""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cdl_jax.data.readers.image_files import SkippedFiles
from cdl_jax.data.readers.image_lists import Parts
from cdl_jax.data.stream import Split
from cdl_jax.errors import UserError
from cdl_jax.options import Option
from cdl_jax.runtime.console import one_line

# Class -> images: paths, or members of archives.
Images = dict[str, Sequence[Any]]

SPLIT_OPTIONS: dict[str, Any] = {
    "test_fraction": Option(
        0.2, "fraction of each class in the test set, if the folder has no test set", above=0, below=1
    ),
    "split_seed": Option(0, "seed of that split"),
}
_MAX_NAMES = 5  # classes in a message


def divide(
    root: Path, parts: Parts, options: Mapping[str, Any], skipped: SkippedFiles, *, skip_empty: bool = False
) -> tuple[Images, Images]:
    """Returns the training and the test images of each class that has training images.

    If both `test/` and `val/` exist, `test/` is the test set. If neither exists, the test set is `test_fraction` of
    each class (rounded, at least one image), drawn by `split_seed` from the sorted file names.

    Args:
      root: of the parts, for messages.
      parts: see `layouts.find`.
      options: with the keys of `SPLIT_OPTIONS`.
      skipped: counts classes that are left out.
      skip_empty: whether classes without training images are left out.

    Raises:
      UserError: there are no training images, a class has none, or a class is in the test set only.
    """
    train_classes = parts.get("train", parts.get("", {}))
    tests = [name for name in ("test", "val") if name in parts]
    if "train" in parts and not tests:
        remedy = f", or set data.path to {root / 'train'}" if (root / "train").is_dir() else ""
        raise UserError(
            f"{root}: has train/ but neither test/ nor val/; add one with class folders or a list of labels{remedy}"
        )
    if not train_classes:
        raise UserError(f"{root}: no training images" + f"; it has only {' and '.join(tests)}" * bool(tests))
    training = _without_empty(train_classes, root, skip_empty, skipped)
    if not tests:
        return _split_by_seed(root, training, options["test_fraction"], options["split_seed"])
    if len(tests) > 1:
        line = f"{root}: test/ is the test set, and val/ is not used"
        logging.getLogger("cdl_jax").warning("%s", one_line(line))
    return training, _keep_known(parts[tests[0]], train_classes, training, root, tests[0], skipped)


def to_split(images: Mapping[str, Sequence[Any]], classes: Sequence[str]) -> Split:
    """Returns the split of images by class; labels are positions in `classes`."""
    files = [images.get(name, ()) for name in classes]
    labels = np.repeat(np.arange(len(files), dtype=np.int32), [len(class_files) for class_files in files])
    return Split(labels, files=tuple(file for class_files in files for file in class_files))


def shorten(names: Sequence[str]) -> str:
    """Returns the first names as text, with the number of the others."""
    return ", ".join(names[:_MAX_NAMES]) + f" and {len(names) - _MAX_NAMES} more" * (len(names) > _MAX_NAMES)


def _without_empty(classes, root, skip, skipped):
    """Returns the classes that have training images.

    Raises:
      UserError: some have none, and `skip` is false.
    """
    empty = [name for name, files in classes.items() if not files]
    if empty and not skip:
        raise UserError(
            f"{root}: {len(empty)} classes without training images: {shorten(empty)}; add images, remove the folders, "
            "or leave the classes out by --config.data.skip_empty_classes=true"
        )
    for name in empty:
        skipped.add("classes without training images", name)
    return {name: files for name, files in classes.items() if files}


def _keep_known(test, folders, training, root, part, skipped):
    """Returns the test images of the classes that have training images.

    Raises:
      UserError: a class is unknown to the training part.
    """
    unknown = [name for name, files in test.items() if name not in folders and files]
    if unknown:
        raise UserError(
            f"{root / part / unknown[0]}: no such class in {root / 'train'}; {len(unknown)} classes of {part}/ lack "
            f"training images: {shorten(unknown)}"
        )
    for name in test.keys() - training.keys():
        skipped.add(f"{part} classes without training images", name)
    return {name: test.get(name, []) for name in training}


def _split_by_seed(root, images, fraction, seed):
    train, test = {}, {}
    for label, (name, files) in enumerate(images.items()):
        if len(files) < 2:
            raise UserError(f"{root / name}: {len(files)} images; a class needs two or more to be split")
        order = np.random.default_rng((seed, label)).permutation(len(files))
        num_test = min(max(1, round(fraction * len(files))), len(files) - 1)
        test[name] = [files[row] for row in sorted(order[:num_test])]
        train[name] = [files[row] for row in sorted(order[num_test:])]
    return train, test
