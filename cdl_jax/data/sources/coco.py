"""Loads images with boxes in the layout of COCO, for detection.

    ROOT/train2017/*.jpg                         ROOT/val2017/*.jpg
    ROOT/annotations/instances_train2017.json    ROOT/annotations/instances_val2017.json

Parts may have other names. `python -m cdl_jax.data.tools.voc_to_coco` and `make_glyph_scenes` write this layout.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np

from cdl_jax.data.detection import coco_files
from cdl_jax.data.detection.coco_files import DetectionSet, Objects
from cdl_jax.data.detection.streams import DetectionData
from cdl_jax.data.readers import locate
from cdl_jax.errors import UserError
from cdl_jax.options import Option

OPTIONS: dict[str, Any] = {
    "train_part": Option("train2017", "folder of the training images; its annotations are instances_<part>.json"),
    "test_part": Option("val2017", "folder of the test images, likewise"),
    "check_sizes": Option(
        True, "compare the size of every image file with the annotations before training; False: when it is decoded"
    ),
    "segmentations": Option(False, "read the segmentations of the training objects, which token labels need"),
}

_COCO_IDS = tuple(number for number in range(1, 91) if number not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83))
_MAX_OBJECTS = 99  # of a placeholder; no image of COCO has 100 objects


class _Sizes(NamedTuple):
    """The size of a published set.

    name: of the set.
    ids: category ids.
    num_train, num_test: numbers of training and test images.
    image_size: the usual (height, width) in pixels.
    """

    name: str
    ids: Sequence[int]
    num_train: int
    num_test: int
    image_size: tuple[int, int]


_COCO_2017 = _Sizes("coco", _COCO_IDS, 118_287, 5_000, (480, 640))
_VOC_2007 = _Sizes("voc", range(1, 21), 5_011, 4_952, (375, 500))


def load(options: Mapping[str, Any]) -> DetectionData:
    """Loads the training and the test part.

    Raises:
      UserError: a file is missing, damaged or contradicts another, see `coco_files.read`.
    """
    root = locate.find(
        options["path"],
        ("coco", "coco2017", "COCO"),
        what="images with boxes in the layout of COCO",
        remedy="set data.path to the folder with annotations/ (docs/guides/detection_data.md)",
        inside=("annotations",),
    )
    if not root.is_dir():
        raise UserError(f"data.path={options['path']!r} is a file: set it to the folder with annotations/")
    if options["train_part"] == options["test_part"]:
        raise UserError(f"data.train_part and data.test_part are both {options['test_part']!r}: use two parts")
    train, test = (
        coco_files.read_part(root, options[part], check_sizes=options["check_sizes"], masks=masks)
        for part, masks in (("train_part", options["segmentations"]), ("test_part", False))
    )
    return DetectionData(root.resolve().name, train, test)


def placeholder(options: Mapping[str, Any]) -> DetectionData:
    """Returns sets without images, to plan a run.

    They have the size of VOC 2007 for its part trainval, else of COCO 2017.
    """
    sizes = _VOC_2007 if options["train_part"] == "trainval" else _COCO_2017
    train = _without_images("train", sizes, sizes.num_train)
    if options["segmentations"]:
        masks = np.full(len(train.objects), b"", object)
        train = replace(train, objects=replace(train.objects, masks=masks))
    return DetectionData(sizes.name, train, _without_images("val", sizes, sizes.num_test))


def _without_images(name, sizes, n) -> DetectionSet:
    """Returns a set with one object in each image.

    The last image has the most objects of an image of COCO.
    """
    rows = np.concatenate([np.arange(n), np.full(_MAX_OBJECTS - 1, n - 1)]).astype(np.int32)
    labels = np.resize(sizes.ids, len(rows)).astype(np.int32)
    height, width = sizes.image_size
    boxes = np.tile(np.array([0.0, 0.0, width, height]), (len(rows), 1))
    objects = Objects(
        np.arange(len(rows)), rows, labels, boxes, np.prod(boxes[:, 2:], axis=1), np.zeros(len(rows), bool)
    )
    categories = {number: f"category {number}" for number in sizes.ids}
    return DetectionSet(name, categories, np.arange(n), ("",) * n, np.tile(np.int32(sizes.image_size), (n, 1)), objects)
