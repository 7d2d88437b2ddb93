"""Loads images of yours: from class folders, lists, or tar archives without unpacking."""

import logging
import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from cdl_jax.data import stream
from cdl_jax.data.readers import image_files, layouts
from cdl_jax.data.stream import Dataset, Split
from cdl_jax.errors import UserError
from cdl_jax.options import Option
from cdl_jax.runtime import paths
from cdl_jax.runtime.console import one_line

OPTIONS: dict[str, Any] = {
    "test_fraction": Option(
        0.2, "fraction of each class in the test set, if the folder has no test set", above=0, below=1
    ),
    "split_seed": Option(0, "seed of that split"),
    "skip_empty_classes": Option(False, "True: leave out classes without training images; False: refuse them"),
}
_MAX_NAMES = 5  # classes in a message


def load(options: Mapping[str, Any]) -> Dataset:
    """Loads images from a folder, a tar archive or a list; see `readers.layouts`.

    Classes are in the sorted order of their names. If both `test/` and `val/` exist, `test/` is the test set. If
    neither exists, `test_fraction` of each class (rounded, at least one image) is the test set, drawn by `split_seed`
    from the sorted file names. One log line counts and names skipped files.

    Raises:
      UserError: the path or its layout is unknown, a class has no training images, or a class is in the test set only.
    """
    if not options["path"]:
        raise UserError("the folder source reads images of yours: set data.path to the folder with train/ and test/")
    root = paths.resolve(options["path"], "data.path")
    if not os.path.lexists(root):
        raise UserError(f"data.path={options['path']!r}: no such file or folder")
    if not os.path.isdir(root) and not os.path.isfile(root):
        raise UserError(f"data.path={options['path']!r} is neither a folder nor a file: set it to one of them")
    skipped = image_files.SkippedFiles()
    parts = layouts.find(root, skipped)
    with_images = {name for classes in parts.values() for name, files in classes.items() if files}
    if root.is_dir() and with_images <= {"images"}:
        formats = ", ".join(image_files.EXTENSIONS)
        raise UserError(f"{root}: no images ({formats}) of classes: it {layouts.describe(root)}")
    known = parts.get("train", parts.get("", {}))
    tests = [name for name in ("test", "val") if name in parts]
    if "train" in parts and not tests:
        remedy = f", or set data.path to {root / 'train'}" if (root / "train").is_dir() else ""
        raise UserError(
            f"{root}: has train/ but neither test/ nor val/; add one with class folders or a list of labels{remedy}"
        )
    if not known:
        raise UserError(f"{root}: no training images" + f"; it has only {' and '.join(tests)}" * bool(tests))
    training = _without_empty(known, root, options["skip_empty_classes"], skipped)
    if tests:
        train, test = training, _keep_known(parts[tests[0]], known, training, root, tests[0], skipped)
        if len(tests) > 1:
            line = f"{root}: test/ is the test set, and val/ is not used"
            logging.getLogger("cdl_jax").warning("%s", one_line(line))
    else:
        train, test = _split_by_seed(root, training, options["test_fraction"], options["split_seed"])
    skipped.log(root)
    name = root.resolve().name.removesuffix(".tar") if root.is_dir() or root.suffix == ".tar" else root.resolve().stem
    return Dataset(name, tuple(training), _split(train, training), _split(test, training))


def placeholder(options: Mapping[str, Any]) -> Dataset:
    """Returns the sizes of ImageNet (ILSVRC 2012)."""
    return stream.placeholder("folder", 1000, 1_281_167, 50_000)


def _without_empty(classes, root, skip, skipped):
    """Returns the classes that have training images.

    Raises:
      UserError: some have none, and `skip` is false.
    """
    empty = [name for name, files in classes.items() if not files]
    if empty and not skip:
        raise UserError(
            f"{root}: {len(empty)} classes without training images: {_shorten(empty)}; add images, remove the folders, "
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
            f"training images: {_shorten(unknown)}"
        )
    for name in test.keys() - training.keys():
        skipped.add(f"{part} classes without training images", name)
    return {name: test.get(name, []) for name in training}


def _shorten(names):
    return ", ".join(names[:_MAX_NAMES]) + f" and {len(names) - _MAX_NAMES} more" * (len(names) > _MAX_NAMES)


def _split_by_seed(root, images, fraction, seed):
    train, test = {}, {}
    for label, (name, files) in enumerate(images.items()):
        if len(files) < 2:
            raise UserError(f"{root / name}: {len(files)} images; a class needs two or more to be split")
        order = np.random.default_rng((seed, label)).permutation(len(files))
        held_out = min(max(1, round(fraction * len(files))), len(files) - 1)
        test[name] = [files[row] for row in sorted(order[:held_out])]
        train[name] = [files[row] for row in sorted(order[held_out:])]
    return train, test


def _split(images, classes):
    files = [images[name] for name in classes]
    labels = np.repeat(np.arange(len(files), dtype=np.int32), [len(class_files) for class_files in files])
    return Split(labels, files=tuple(file for class_files in files for file in class_files))
