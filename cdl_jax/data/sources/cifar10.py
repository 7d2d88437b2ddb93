"""Loads CIFAR-10 from the official python or binary files."""

from collections.abc import Mapping
from typing import Any

from cdl_jax.data import stream
from cdl_jax.data.readers import cifar_files
from cdl_jax.data.stream import Dataset

OPTIONS: dict[str, Any] = {}

LAYOUTS = (
    cifar_files.Layout(
        archive="cifar-10-python.tar.gz",
        folder="cifar-10-batches-py",
        train=tuple(f"data_batch_{number}" for number in range(1, 6)),
        test=("test_batch",),
        names_file="batches.meta",
        labels="labels",
        class_names="label_names",
    ),
    cifar_files.Layout(
        archive="cifar-10-binary.tar.gz",
        folder="cifar-10-batches-bin",
        train=tuple(f"data_batch_{number}.bin" for number in range(1, 6)),
        test=("test_batch.bin",),
        names_file="batches.meta.txt",
    ),
)


def load(options: Mapping[str, Any]) -> Dataset:
    """Loads 50,000 + 10,000 images `[32, 32, 3]` in their official order.

    Args:
      options: `path`, see `cifar_files.load`.

    Raises:
      UserError: the files are missing or damaged.
    """
    return cifar_files.load("cifar10", LAYOUTS, options["path"])


def placeholder(options: Mapping[str, Any]) -> Dataset:
    """Returns the published sizes without images."""
    return stream.placeholder("cifar10", 10, 50_000, 10_000, side=32)
