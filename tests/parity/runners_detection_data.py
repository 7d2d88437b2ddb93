"""Runners of the VkD fixtures of detection: data and evaluation.

The runners compute targets, transforms, post-processing and COCO's evaluation.

A runner maps (config, arrays) to {"out/..." or "grad/...": array}.
"""

import jax
import numpy as np
from PIL import Image

from cdl_jax.data.detection import transforms
from cdl_jax.data.detection.coco_files import DetectionSet, Objects, Targets, prepare_targets
from cdl_jax.data.detection.transforms import CropDraws, Draws
from cdl_jax.evaluation import coco
from cdl_jax.evaluation.detections import Detections, top_detections
from cdl_jax.options import defaults


def run_prepare(config, arrays):
    size = np.array([config["image_height"], config["image_width"]])
    columns = (arrays[f"in/{name}"] for name in ("bbox_xywh", "category_id", "area"))
    targets = prepare_targets(*columns, arrays["in/iscrowd"] == 1, size)
    return {
        "out/boxes": targets.boxes,
        "out/labels": targets.labels,
        "out/area": targets.areas,
        "out/iscrowd": np.zeros(len(targets)),
        "out/orig_size": size,
        "out/size": size,
    }


def run_resize_sizes(config, arrays):
    rows = arrays["in/width_height_size_max"].tolist()
    sizes = [transforms.resized_size((height, width), short, cap) for width, height, short, cap in rows]
    return {"out/height_width": np.array(sizes)}


def options_of(config):
    return {
        **defaults(transforms.OPTIONS),
        "scales": tuple(config["scales"]),
        "max_size": config["max_size"],
        "first_scales": tuple(config["first_scales"]),
        "crop_range": tuple(config["crop_range"]),
        "eval_size": config["eval_size"],
        "eval_max_size": config["eval_max_size"],
        **{key: tuple(config[key]) for key in ("mean", "std") if key in config},
    }


def draws_of(case):
    crop = None
    if not case["plain_branch"]:
        crop = CropDraws(case["first_short_side"], *(case[f"crop_{key}"] for key in ("top", "left", "height", "width")))
    return Draws(case["flip"], case["short_side"], crop)


def normalized(image, options):
    pixels = np.asarray(image)[None]
    return np.moveaxis(np.asarray(transforms.normalize(pixels, np.array([pixels.shape[1:3]]), options)[0]), -1, 0)


def outputs(image, targets, name, prefix=""):
    """Returns the arrays of one transformed image without its pixels.

    `prefix` and `name` are parts of the arrays' names.
    """
    size = image.size[::-1]
    return {
        f"out/{prefix}boxes{name}": transforms.relative_boxes(targets.boxes, size),
        f"out/{prefix}labels{name}": targets.labels,
        f"out/{prefix}area{name}": targets.areas,
        f"out/{prefix}size{name}": np.array(size),
    }


def run_transforms(config, arrays):
    options = options_of(config)
    image, targets = Image.fromarray(arrays["in/image"]), targets_of(arrays["in/boxes"], arrays["in/labels"])
    targets = Targets(targets.boxes, targets.labels, arrays["in/area"])
    transformed = {"_eval": transforms.transform_test(image, targets, options)}
    for number, case in enumerate(config["cases"]):
        transformed[f"_{number}"] = transforms.transform_train(image, targets, draws_of(case), options)
    ours = {f"out/image{name}": normalized(image, options) for name, (image, _) in transformed.items()}
    for name, (image, targets) in transformed.items():
        ours |= outputs(image, targets, name)
    return ours


def run_transform_boxes(config, arrays):
    options, ours = options_of(config), {}
    for number, case in enumerate(config["cases"]):
        image = Image.new("RGB", (case["width"], case["height"]))
        boxes = arrays[f"in/boxes_{number}"]
        targets = targets_of(boxes, arrays.get(f"in/labels_{number}", np.arange(1, len(boxes) + 1)))
        draws = draws_of(case)
        train = transforms.transform_train(image, targets, draws, options)
        assert transforms.train_size((case["height"], case["width"]), draws, options) == train[0].size[::-1]
        ours |= outputs(*train, f"_{number}")
        ours |= outputs(*transforms.transform_test(image, targets, options), f"_{number}", "eval_")
    return ours


def targets_of(boxes, labels):
    return Targets(boxes, labels, (boxes[:, 2:] - boxes[:, :2]).prod(axis=1))


def run_postprocess(config, arrays):
    found = jax.jit(top_detections, static_argnums=3)(
        arrays["in/logits"], arrays["in/boxes"], arrays["in/original_sizes"], config["top"]
    )
    found, ours = jax.device_get(found), {}
    for i, boxes in enumerate(found["boxes"]):
        ours[f"out/scores_{i}"], ours[f"out/labels_{i}"] = found["scores"][i], found["labels"][i]
        ours[f"out/boxes_xyxy_{i}"] = boxes
        ours[f"out/boxes_xywh_{i}"] = np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1)
    return ours


def run_coco_eval(config, arrays):
    image_ids = np.array(sorted(config["image_ids"]), np.int64)
    rows = np.searchsorted(image_ids, arrays["in/gt_image"])
    order = np.argsort(rows, kind="stable")
    objects = Objects(
        np.arange(len(rows)),
        rows,
        arrays["in/gt_category"],
        arrays["in/gt_bbox_xywh"],
        arrays["in/gt_area"],
        arrays["in/gt_iscrowd"] == 1,
    ).take(order)
    categories = {number: str(number) for number in sorted(config["categories"])}
    sizes = np.full((len(image_ids), 2), 1000, np.int32)
    data = DetectionSet("fixture", categories, image_ids, ("",) * len(image_ids), sizes, objects)
    columns = (arrays[f"in/dt_{name}"] for name in ("category", "bbox_xyxy", "score"))
    evaluation = coco.evaluate(data, Detections(np.searchsorted(image_ids, arrays["in/dt_image"]), *columns))
    return {
        "out/stats": np.array(list(evaluation.numbers().values())),
        "out/precision": evaluation.precision[..., 0, 2],
        "out/recall": evaluation.recall[..., 0, 2],
    }


RUNNERS = {
    "detect_prepare": run_prepare,
    "detect_resize_sizes": run_resize_sizes,
    "detect_transforms": run_transforms,
    "detect_transform_boxes": run_transform_boxes,
    "detect_postprocess": run_postprocess,
    "detect_coco_eval": run_coco_eval,
}
