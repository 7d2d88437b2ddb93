"""Loads images of yours from class folders, lists, or tar archives.

Archives are read without unpacking.
"""

import os
from collections.abc import Mapping
from typing import Any

from cdl_jax.data import stream
from cdl_jax.data.readers import image_files, layouts
from cdl_jax.data.readers import parts as class_parts
from cdl_jax.data.stream import Dataset
from cdl_jax.errors import UserError
from cdl_jax.options import Option
from cdl_jax.runtime import paths

OPTIONS: dict[str, Any] = {
    **class_parts.SPLIT_OPTIONS,
    "skip_empty_classes": Option(False, "True: leave out classes without training images; False: refuse them"),
}


def load(options: Mapping[str, Any]) -> Dataset:
    """Loads images from a folder, a tar archive or a list; see `readers.layouts`.

    Classes are in the sorted order of their names; `readers.parts.divide` describes the test set. One log line counts
    and names skipped files.

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
    train, test = class_parts.divide(root, parts, options, skipped, skip_empty=options["skip_empty_classes"])
    skipped.log(root)
    name = root.resolve().name.removesuffix(".tar") if root.is_dir() or root.suffix == ".tar" else root.resolve().stem
    return Dataset(name, tuple(train), *(class_parts.to_split(images, tuple(train)) for images in (train, test)))


def placeholder(options: Mapping[str, Any]) -> Dataset:
    """Returns the sizes of ImageNet (ILSVRC 2012)."""
    return stream.placeholder("folder", 1000, 1_281_167, 50_000)
