"""Any labelled picture set that TensorFlow Datasets has prepared as array_record."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from cdl_jax.data import npz_files, prepared_tfds
from cdl_jax.data.stream import Dataset, Split
from cdl_jax.errors import UserError

OPTIONS: dict[str, Any] = {
    "dataset": "cifar100",  # its name in tfds, with a config or version if need be: "name/config:1.0.0"
    "train_split": "train",
    "test_split": "test",
    "label": "label",  # the feature that holds the class
}


def load(options: Mapping[str, Any]) -> Dataset:
    """Pictures `[height, width, 3]`, decoded into memory; `options["path"]` is tfds' data_dir, or one prepared folder.

    Examples come in the order of their `id` where the set has one (CIFAR: the official order), else as stored.

    Raises:
      UserError: tensorflow_datasets is missing, the set is not prepared, or its pictures differ in size.
    """
    builder = prepared_tfds.builder(options["dataset"], options["path"])
    features = builder.info.features
    class_names = getattr(features[options["label"]], "names", None) if options["label"] in features else None
    if "image" not in features or not class_names:
        raise UserError(
            f"tfds set {options['dataset']!r} has the features {', '.join(features)}; data.label must name the one "
            "that holds classes, and pictures must be called 'image'"
        )
    splits = [_read(builder, options[f"{part}_split"], options["label"]) for part in ("train", "test")]
    return Dataset(builder.name, tuple(class_names), *splits)


def _read(builder, split, label):
    named = "id" in builder.info.features
    records = prepared_tfds.records(builder, split)
    images, labels, ids = [], [], []
    for record in (records[index] for index in range(len(records))):
        if images and record["image"].shape != images[0].shape:
            raise UserError(
                f"tfds set {builder.name!r} has pictures of {images[0].shape} and {record['image'].shape}; save them "
                "as files and use the folder source, which takes all sizes"
            )
        images.append(record["image"])
        labels.append(record[label])
        ids.append(record["id"] if named else len(ids))
    if not images:
        raise UserError(f"tfds set {builder.name!r}: split {split!r} is empty")
    order = np.argsort(np.asarray(ids), kind="stable")
    what = f"tfds set {builder.name!r}"
    return Split(
        npz_files.labels(np.asarray(labels)[order], what=what), npz_files.rgb(np.stack(images)[order], what=what)
    )
