"""Small sets in the layout of COCO, written to a folder."""

import json

import numpy as np
from PIL import Image
from pycocotools import mask

from cdl_jax.data import stream

SIZES = ((40, 60), (64, 48), (50, 50))  # (height, width) of the images 9, 4 and 7


def content():
    """Returns the annotations of three images.

    Image 4 has a crowd and two objects, image 7 none, image 9 one object.
    """
    images = [
        {"id": number, "file_name": f"{number:04d}.png", "height": height, "width": width}
        for number, (height, width) in zip((9, 4, 7), SIZES, strict=True)
    ]
    annotations = [
        {"id": 31, "image_id": 4, "category_id": 90, "bbox": [4, 8, 12, 16], "area": 150, "iscrowd": 0},
        {"id": 12, "image_id": 9, "category_id": 3, "bbox": [50, -5, 20, 25.5], "area": 400.5, "iscrowd": 0},
        {"id": 17, "image_id": 4, "category_id": 3, "bbox": [0, 0, 48, 64], "area": 3000, "iscrowd": 1},
        {"id": 15, "image_id": 4, "category_id": 7, "bbox": [1, 2, 3, 4]},
    ]
    categories = [{"id": 90, "name": "ring"}, {"id": 3, "name": "cat"}, {"id": 7, "name": "hat"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def content_with_segmentations():
    """Returns `content` with a segmentation of each annotation.

    The objects 31 and 12 have polygons, the crowd 17 has counts, and the object 15 has compressed counts. Each covers
    its box, rounded up to pixels and cut at the image.
    """
    records = content()
    box = np.zeros((64, 48), np.uint8, order="F")
    box[2:6, 1:4] = 1
    for record, segmentation in zip(
        records["annotations"],
        (
            [[4, 8, 16, 8, 16, 24, 4, 24]],
            [[50, 0, 60, 0, 60, 21, 50, 21]],
            {"size": [64, 48], "counts": [0, 64 * 48]},
            {"size": [64, 48], "counts": mask.encode(box)["counts"].decode()},
        ),
        strict=True,
    ):
        record["segmentation"] = segmentation
    return records


def stream_of_three(root):
    """Writes two sets; returns their stream of a task for each category 3, 7 and 90.

    Image 4 has one target of each of 7 and 90, 7 one of 7, and 9 one of 3; the set is in the order 4, 7, 9.
    """
    records = content()
    records["annotations"].append({"id": 40, "image_id": 7, "category_id": 7, "bbox": [1, 1, 9, 9]})
    for part in ("train2017", "val2017"):
        write(root, part, records)
    return stream.load({"name": "coco", "path": str(root), "num_tasks": 3})


def write(root, part="train2017", records=None):
    """Writes a set and returns the path of its annotation file."""
    records = content() if records is None else records
    (root / part).mkdir(parents=True)
    for record in content()["images"]:
        pixels = np.random.default_rng(record["id"]).integers(0, 256, (record["height"], record["width"], 3), np.uint8)
        Image.fromarray(pixels).save(root / part / record["file_name"])
    path = root / "annotations" / f"instances_{part}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(records if isinstance(records, str) else json.dumps(records))
    return path
