"""Loads any labeled image set that TensorFlow Datasets prepared as array_record."""

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
from PIL import Image

from cdl_jax.data.readers import decoding, npz_files, prepared_tfds
from cdl_jax.data.stream import Dataset, Split
from cdl_jax.errors import UserError
from cdl_jax.options import Option

OPTIONS: dict[str, Any] = {
    "dataset": Option("cifar100", 'name in tfds, optionally with a config and version: "name/config:1.0.0"'),
    "train_split": Option("train", 'the split to train on in tfds\' syntax, such as "train[:80%]"'),
    "test_split": Option("test", "the split to test on in tfds' syntax"),
    "label": Option("label", "name of the feature with the class"),
    # The shorter side is resized (bicubic), then the center is cropped.
    "side": Option(0, "side of the images in pixels; 0: images keep their size, which must be the same for all"),
    "skip_empty_classes": Option(False, "True: leave out classes without images in both splits"),
}


def load(options: Mapping[str, Any]) -> Dataset:
    """Loads images `[height, width, 3]` into memory.

    Examples are in the order of their `id` if the set has one (CIFAR: the official order), else as stored.

    Args:
      options: `OPTIONS`, and `path`: tfds' data_dir, or one prepared folder.

    Raises:
      UserError: tensorflow_datasets is missing, the set is not prepared, or its images differ in size and `side` is 0.
    """
    builder = prepared_tfds.builder(options["dataset"], options["path"])
    features = builder.info.features
    class_names = getattr(features[options["label"]], "names", None) if options["label"] in features else None
    if "image" not in features or not class_names:
        raise UserError(
            f"tfds set {options['dataset']!r} has the features {', '.join(features)}; data.label must name the "
            "feature of the classes, and the feature of the images must be 'image'"
        )
    label, side = options["label"], options["side"]
    labels, images = {}, {}
    for part in ("train_split", "test_split"):
        labels[part], images[part] = _read(builder, options[part], label, side)
    scaled = npz_files.rgb_by_one_rule(images, where=f"tfds set {builder.name!r}")
    dataset = Dataset(builder.name, tuple(class_names), *map(Split, labels.values(), scaled))
    return _without_empty(dataset) if options["skip_empty_classes"] else dataset


def _without_empty(dataset):
    """Returns a data set without the classes that have no image in either split.

    ImageNet-R has 800 such classes of 1,000 names.
    """
    labels = [split.labels for split in (dataset.train, dataset.test)]
    present = np.unique(np.concatenate(labels))
    logging.getLogger("cdl_jax").warning(
        "%s: %d of %d classes have no image and are left out", dataset.name, len(dataset.class_names) - len(present),
        len(dataset.class_names),
    )  # fmt: skip
    train, test = (np.searchsorted(present, values).astype(np.int32) for values in labels)
    return replace(
        dataset,
        class_names=tuple(dataset.class_names[c] for c in present),
        train=replace(dataset.train, labels=train),
        test=replace(dataset.test, labels=test),
    )


def _read(builder, split, label, side):
    has_ids = "id" in builder.info.features
    records = prepared_tfds.records(builder, split)
    images, labels, ids = [], [], []
    for record in (records[index] for index in range(len(records))):
        image = decoding.square(_to_pil(record["image"]), side) if side else record["image"]
        if images and image.shape != images[0].shape:
            raise UserError(
                f"tfds set {builder.name!r} has images of {images[0].shape} and {image.shape}: resize them to one "
                "size with data.side=256, or save them as files for the folder source, which takes all sizes"
            )
        images.append(image)
        labels.append(record[label])
        ids.append(record["id"] if has_ids else len(ids))
    if not images:
        raise UserError(f"tfds set {builder.name!r}: split {split!r} is empty")
    order = np.argsort(np.asarray(ids), kind="stable")
    labels = npz_files.labels(np.asarray(labels)[order], what=f"tfds set {builder.name!r}")
    return labels, np.stack(images)[order]


def _to_pil(image):
    """Returns the Pillow image of uint8 `[height, width, 1 or 3]`."""
    return Image.fromarray(image[..., 0] if image.shape[-1] == 1 else image)
