"""A user's folder of pictures, one folder a class."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from cdl_jax.data import image_files
from cdl_jax.data.stream import Dataset, Split
from cdl_jax.errors import UserError

OPTIONS: dict[str, Any] = {
    "test_fraction": 0.2,  # of each class, where the folder has no test set of its own
    "split_seed": 0,  # of that split
}


def load(options: Mapping[str, Any]) -> Dataset:
    """Pictures of any size from `train/<class>/` and `test/<class>/` (or `val/<class>/`), or from `<class>/` alone.

    Classes are numbered in sorted order of their names. Without a `train` folder, `test_fraction` of each class
    (rounded, at least one) becomes the test set, drawn by `split_seed` from the sorted file names.

    Raises:
      UserError: no such folder, no classes or no pictures in it, or a class that occurs in the test set alone.
    """
    if not options["path"]:
        raise UserError("the folder source reads pictures of yours: set data.path to the folder with train/ and test/")
    root = Path(options["path"]).expanduser()
    if not root.is_dir():
        raise UserError(f"data.path={options['path']!r} is no folder")
    if not (root / "train").is_dir():
        return _split_by_seed(root, options["test_fraction"], options["split_seed"])
    tests = [root / name for name in ("test", "val") if (root / name).is_dir()]
    if not tests:
        raise UserError(f"{root}: has train/ but neither test/ nor val/; add one, or set data.path to {root / 'train'}")
    class_names = image_files.subfolders(root / "train")
    unknown = [name for name in image_files.subfolders(tests[0]) if name not in class_names]
    if unknown:
        raise UserError(f"{tests[0] / unknown[0]}: no such class in {root / 'train'}")
    train = _split([_pictures(root / "train" / name) for name in class_names], root)
    test = _split([_pictures(tests[0] / name) if (tests[0] / name).is_dir() else [] for name in class_names], root)
    return Dataset(root.resolve().name, class_names, train, test)


def _split_by_seed(root, fraction, seed):
    if not 0 < fraction < 1:
        raise UserError(f"data.test_fraction={fraction} must lie between 0 and 1")
    train, test = [], []
    class_names = image_files.subfolders(root)
    for label, name in enumerate(class_names):
        files = _pictures(root / name)
        if len(files) < 2:
            raise UserError(f"{root / name}: {len(files)} pictures; a class needs two or more to be split")
        order = np.random.default_rng((seed, label)).permutation(len(files))
        held_out = min(max(1, round(fraction * len(files))), len(files) - 1)
        test.append([files[row] for row in sorted(order[:held_out])])
        train.append([files[row] for row in sorted(order[held_out:])])
    return Dataset(root.resolve().name, class_names, _split(train, root), _split(test, root))


def _pictures(folder):
    return [str(folder / name) for name in image_files.pictures(folder)]


def _split(files_of_class, root):
    files = tuple(file for files in files_of_class for file in files)
    if not files:
        formats = ", ".join(image_files.EXTENSIONS)
        raise UserError(f"{root}: no pictures ({formats}) in <class> folders, nor in train/<class> and test/<class>")
    return Split(
        np.repeat(np.arange(len(files_of_class), dtype=np.int32), [len(f) for f in files_of_class]), files=files
    )
