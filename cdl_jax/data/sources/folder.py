"""A user's pictures, one folder a class: in a folder, or in tar archives that are read as they are."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cdl_jax import paths
from cdl_jax.data import image_files, tar_files
from cdl_jax.data.stream import Dataset, Split
from cdl_jax.errors import UserError

OPTIONS: dict[str, Any] = {
    "test_fraction": 0.2,  # of each class, where the folder has no test set of its own
    "split_seed": 0,  # of that split
}
_ARCHIVES = ("{}.tar", "ILSVRC2012_img_{}.tar")


def load(options: Mapping[str, Any]) -> Dataset:
    """Pictures of any size from `train/<class>/` and `test/<class>/` (or `val/<class>/`), or from `<class>/` alone.

    `data.path` is a folder or a tar archive with these. In a folder, `train.tar` or `ILSVRC2012_img_train.tar` may
    stand for `train/`, and so for the others; archives are read as `tar_files.classes` tells. Classes are numbered in
    sorted order of their names. Without training pictures of their own, `test_fraction` of each class (rounded, at
    least one) becomes the test set, drawn by `split_seed` from the sorted file names.

    Raises:
      UserError: no such folder, no classes or no pictures in it, a damaged archive, or a class that occurs in the test
        set alone.
    """
    if not options["path"]:
        raise UserError("the folder source reads pictures of yours: set data.path to the folder with train/ and test/")
    root = paths.resolve(options["path"], "data.path")
    if not root.is_dir() and not root.is_file():
        raise UserError(f"data.path={options['path']!r} is no folder and no tar archive")
    parts = _parts(root)
    if "train" not in parts:
        return _split_by_seed(root, parts.get("", {}), options["test_fraction"], options["split_seed"])
    tests = [name for name in ("test", "val") if name in parts]
    if not tests:
        remedy = f", or set data.path to {root / 'train'}" if (root / "train").is_dir() else ""
        raise UserError(f"{root}: has train/ but neither test/ nor val/; add one{remedy}")
    train, test = parts["train"], parts[tests[0]]
    unknown = [name for name in test if name not in train]
    if unknown:
        raise UserError(f"{root / tests[0] / unknown[0]}: no such class in {root / 'train'}")
    splits = _split(list(train.values()), root), _split([test.get(name, []) for name in train], root)
    return Dataset(_name(root), tuple(train), *splits)


def _parts(root) -> dict[str, dict[str, list]]:
    """`{part: {class: pictures}}` of the parts train, test and val that there are; without train, of the part ""."""
    if root.is_file():
        return tar_files.classes(root)
    found = {}
    for part in ("train", "test", "val"):
        archives = [root / name.format(part) for name in _ARCHIVES if (root / name.format(part)).is_file()]
        if (root / part).is_dir():
            found[part] = _folders(root / part)
        elif archives:
            inside = tar_files.classes(archives[0])
            found[part] = inside.get(part) or inside.get("") or next(iter(inside.values()))
    return found if "train" in found else {"": _folders(root)}


def _split_by_seed(root, pictures, fraction, seed):
    if not 0 < fraction < 1:
        raise UserError(f"data.test_fraction={fraction} must lie between 0 and 1")
    train, test = [], []
    for label, (name, files) in enumerate(pictures.items()):
        if len(files) < 2:
            raise UserError(f"{root / name}: {len(files)} pictures; a class needs two or more to be split")
        order = np.random.default_rng((seed, label)).permutation(len(files))
        held_out = min(max(1, round(fraction * len(files))), len(files) - 1)
        test.append([files[row] for row in sorted(order[:held_out])])
        train.append([files[row] for row in sorted(order[held_out:])])
    return Dataset(_name(root), tuple(pictures), _split(train, root), _split(test, root))


def _folders(root):
    """`{class: paths}` of the folders in a folder, sorted."""
    return {
        name: [str(root / name / picture) for picture in image_files.pictures(root / name)]
        for name in image_files.subfolders(root)
    }


def _name(root):
    return root.resolve().name.removesuffix(".tar")


def _split(files_of_class, root):
    files = tuple(file for files in files_of_class for file in files)
    if not files:
        formats = ", ".join(image_files.EXTENSIONS)
        raise UserError(f"{root}: no pictures ({formats}) in <class> folders, nor in train/<class> and test/<class>")
    return Split(
        np.repeat(np.arange(len(files_of_class), dtype=np.int32), [len(f) for f in files_of_class]), files=files
    )
