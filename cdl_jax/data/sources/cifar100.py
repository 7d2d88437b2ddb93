"""Loads CIFAR-100 (100 fine classes) from the official python or binary files."""

from collections.abc import Mapping
from typing import Any

from cdl_jax.data import stream
from cdl_jax.data.readers import cifar_files
from cdl_jax.data.stream import Dataset

OPTIONS: dict[str, Any] = {}

LAYOUTS = (
    cifar_files.Layout(
        archive="cifar-100-python.tar.gz",
        folder="cifar-100-python",
        train=("train",),
        test=("test",),
        names_file="meta",
        labels="fine_labels",
        class_names="fine_label_names",
    ),
    cifar_files.Layout(
        archive="cifar-100-binary.tar.gz",
        folder="cifar-100-binary",
        train=("train.bin",),
        test=("test.bin",),
        names_file="fine_label_names.txt",
        label_bytes=2,  # coarse, fine
    ),
)


def load(options: Mapping[str, Any]) -> Dataset:
    """Loads 50,000 + 10,000 images `[32, 32, 3]` in their official order.

    Args:
      options: `path`, see `cifar_files.load`.

    Raises:
      UserError: the files are missing or damaged.
    """
    return cifar_files.load("cifar100", LAYOUTS, options["path"])


def placeholder(options: Mapping[str, Any]) -> Dataset:
    """Returns the published sizes without images."""
    return stream.placeholder("cifar100", 100, 50_000, 10_000, side=32)
