"""Loads several data sets, each of which is one task, such as 5-datasets.

    config.data.sets = ("tfds:dataset=svhn_cropped,path=DIR", "cifar10", "folder:path=notMNIST")

`data.num_tasks=0`, the default of this source, makes one task of each set. Another number divides the classes of all
sets. Images are in memory, and of one size.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from cdl_jax import config, plugins
from cdl_jax.data import stream
from cdl_jax.data.image_dataset import load_image
from cdl_jax.data.readers import decoding
from cdl_jax.data.stream import Dataset, Split
from cdl_jax.errors import UserError
from cdl_jax.options import Option, change_defaults, check, defaults

OPTIONS: dict[str, Any] = {
    **change_defaults({"num_tasks": stream.OPTIONS["num_tasks"]}, num_tasks=0),
    "sets": Option(
        (), 'the data sets in the order of tasks: "SOURCE" or "SOURCE:key=value,key=value", such as path', item_type=str
    ),
    # As `tfds` does with data.side.
    "side": Option(32, "side of all images in pixels; others are resized and cropped to it", minimum=1),
}


def load(options: Mapping[str, Any]) -> Dataset:
    """Loads all sets; class names are `<set>/<class>`.

    Raises:
      UserError: fewer than two sets are named, or one of them cannot be loaded.
    """
    if len(options["sets"]) < 2 or options["path"]:
        raise UserError(
            "the several_sets source needs two or more sets in data.sets, each with its own path, and no data.path: "
            "such as ('cifar10', 'folder:path=DIR')"
        )
    sets = [_load_set(text) for text in options["sets"]]
    starts = np.cumsum([0, *(len(data.class_names) for data in sets)])
    parts = []
    for splits in ([data.train for data in sets], [data.test for data in sets]):
        labels = [split.labels + np.int32(start) for split, start in zip(splits, starts, strict=False)]
        parts.append(
            Split(np.concatenate(labels), np.concatenate([_resize(split, options["side"]) for split in splits]))
        )
    names = tuple(f"{data.name}/{name}" for data in sets for name in data.class_names)
    return Dataset("+".join(data.name for data in sets), names, *parts, task_sizes=tuple(np.diff(starts).tolist()))


def placeholder(options: Mapping[str, Any]) -> Dataset:
    """Returns sets of 10 classes without images, each as large as MNIST."""
    sizes = (10,) * max(len(options["sets"]), 2)
    count = len(sizes)
    data = stream.placeholder("several_sets", 10 * count, 60_000 * count, 10_000 * count, side=options["side"])
    return replace(data, task_sizes=sizes)


def _load_set(text) -> Dataset:
    """Returns the data set of `SOURCE:key=value,...`."""
    name, _, arguments = text.partition(":")
    try:
        source = plugins.load_plugin("data.sources", name)
        set_options = {key: option for key, option in source.OPTIONS.items() if key not in stream.OPTIONS}
        values = config.arguments(arguments, path="", **defaults(set_options))
        check(set_options, values, "data")
        data = source.load({**defaults(source.OPTIONS), **values})
    except UserError as error:
        raise UserError(f"data.sets, {text!r}: {error}") from None
    if not isinstance(data, Dataset):
        raise UserError(f"data.sets, {text!r}: has boxes; choose sources of images with one label each")
    return data


def _resize(split, side) -> np.ndarray:
    """Returns the images of a split, uint8 `[n, side, side, 3]`."""
    if split.images is not None and split.images.shape[1:3] == (side, side):
        return split.images
    images = np.empty((len(split), side, side, 3), np.uint8)
    for row in range(len(split)):
        images[row] = decoding.square(load_image(split, row)[0], side)
    return images
