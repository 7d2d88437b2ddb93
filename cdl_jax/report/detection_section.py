"""Shows detectors: COCO's numbers, precision-recall curves, and images with boxes."""

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cdl_jax import schema
from cdl_jax.evaluation import coco
from cdl_jax.report import boxes, plots, text
from cdl_jax.report.text import Rows

FILE = "detections.json"
_KINDS = {"all classes": "AP", "old classes": "AP old", "new classes": "AP new"}
_MEAN = "mean over classes"
TRUE_COLOR, PREDICTED_COLOR = "#2ee6a6", "#ffb000"  # bright, with black letters
_LONGER_SIDE = 360  # pixels of a drawn image
_QUALITY = 85  # of JPEG
_MAX_OPEN_CLASSES = 20  # a longer table of classes is folded

Numbers = Sequence[Mapping[str, float]]


def read(folder: Path) -> dict[str, Any] | None:
    """Returns the content of a run's detections.json; None: missing or damaged.

    Raises:
      UserError: a later version of this program wrote it.
    """
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None
    if not isinstance(content, dict):
        return None
    schema.check(content, folder / FILE)
    return content


def html_parts(results: Mapping[str, Any], detections: Mapping[str, Any] | None) -> list[str]:
    """Returns the HTML sections of a run's detectors; empty for classifiers.

    Args:
      results: the content of results.json.
      detections: the content of detections.json; None: curves and images are left out.
    """
    networks = {name: entry for name, entry in results.get("networks", {}).items() if entry.get("class_ap")}
    if not networks:
        return []
    numbers, classes = results["extra_metrics"], [name for t in results["stream"]["tasks"] for name in t["classes"]]
    parts = ["<h2>Detection</h2>"]
    if len(numbers) > 1:
        caption = "AP (IoU 0.5 to 0.95) after each task: all classes seen, those of earlier tasks, those of the task."
        plot = plots.precision_over_tasks(_over_tasks(numbers, networks))
        parts.append(text.figure(plot, "AP over tasks", caption))
    parts += [f"<div class=row>{''.join(_curves(detections))}</div>"] if detections else []
    for name, entry in networks.items():
        heads = [f"after task {i}" for i in range(len(numbers))]
        parts += _tables(name, heads, numbers, entry["class_ap"], classes)
    return [*parts, *(_images(detections) if detections else [])]


def summary(network: str, numbers: Mapping[str, float], class_ap: Sequence[tuple[str, float | None]]) -> str:
    """Returns the tables of one evaluation for the terminal.

    Args:
      network: its name.
      numbers: `<network>/<number>` -> percent.
      class_ap: name and percent of each class; None: a class without objects.
    """
    classes, values = zip(*class_ap, strict=True)
    tables = number_rows(network, ["%"], [numbers]), class_rows(["%"], [values], classes)
    return "\n".join(map(text.aligned, tables))


def number_rows(network: str, heads: Sequence[str], numbers: Numbers) -> Rows:
    """Returns a table of COCO's numbers (rows) in each evaluation (columns).

    Args:
      network: its name, in the corner of the table.
      heads: one for each evaluation.
      numbers: of each evaluation, `<network>/<number>` -> percent. Old and new classes are left out where none are old.
    """
    has_old = any(f"{network}/AP old" in of_task for of_task in numbers)
    shown = (*coco.NUMBERS, *(("AP old", "AP new") if has_old else ()))
    return [[network, *heads], *([n, *(text.number(t.get(f"{network}/{n}")) for t in numbers)] for n in shown)]


def class_rows(heads: Sequence[str], class_ap: Sequence[Sequence[float | None]], classes: Sequence[str]) -> Rows:
    """Returns a table of the AP of classes (rows) in each evaluation (columns).

    Args:
      heads: one for each evaluation.
      class_ap: of each evaluation, percent of the first classes; None: a class without objects.
      classes: names in stream order; classes that no evaluation has are left out.
    """
    rows = [["AP of the class", *heads]]
    for i, name in enumerate(classes[: max(map(len, class_ap))]):
        rows.append([name, *(text.number(values[i] if i < len(values) else None) for values in class_ap)])
    return rows


def _over_tasks(numbers, networks):
    return {
        network: {kind: [of_task.get(f"{network}/{name}") for of_task in numbers] for kind, name in _KINDS.items()}
        for network in networks
    }


def _curves(content):
    """Returns the plots of precision over recall.

    The first plot has the means over classes. Each network has a further plot with each class.
    """
    networks, moment = content["curves"], f"after task {content['task']}"
    means = {
        f"{network}, IoU {iou}": curves[iou]
        for network, curves in networks.items()
        for iou in ("0.5", "0.75")
        if curves[iou]
    }
    caption = f"Precision at 101 recalls {moment}, at two IoU thresholds. The mean of a curve is AP50 or AP75."
    parts = [text.figure(plots.precision_recall(means, _MEAN), "precision over recall", caption)]
    for network, curves in networks.items():
        class_curves = zip(_distinct(content["classes"]), curves["classes"], strict=True)
        measured_curves = {name: curve for name, curve in class_curves if curve}
        caption = f"{network}: precision of each class at IoU 0.5 {moment}; black: the mean over classes."
        plot = plots.precision_recall({**measured_curves, _MEAN: curves["0.5"]}, f"{network}, IoU 0.5", bold=_MEAN)
        parts.append(text.figure(plot, f"{network} precision over recall by class", caption))
    return parts


def _distinct(names):
    """Returns names, with the position appended to each repeated name.

    Sets may give two categories one name.
    """
    return [name if names.count(name) == 1 else f"{name} ({i})" for i, name in enumerate(names)]


def _tables(network, heads, numbers, class_ap, classes):
    """Returns the numbers of a network and, beside them, those of its classes."""
    class_table = text.html_table(class_rows(heads, class_ap, classes), f"{network} AP of classes")
    if len(class_ap[-1]) > _MAX_OPEN_CLASSES:
        summary = f"{text.escape(network)}: AP of {len(class_ap[-1])} classes"
        class_table = f"<details><summary>{summary}</summary>{class_table}</details>"
    network_table = text.html_table(number_rows(network, heads, numbers), f"{network} COCO numbers")
    return [f"<div class=row>{network_table}{class_table}</div>"]


def _images(content):
    """Returns a row for each image: the true boxes, then those of each network."""
    parts = [
        "<h2>Detections in test images</h2>",
        f"<p class=quiet>After task {content['task']}, {len(content['images'])} images that are evenly spaced in the "
        "test set. Green: true boxes of the classes seen. "
        f"Orange: detections with a score of at least {content['min_score']}.</p>",
    ]
    for image in content["images"]:
        pixels, scale = _decode(image)
        panels = [(f"image {image['id']}: true boxes", _draw(pixels, scale, image["objects"], TRUE_COLOR))]
        for network, found in image["detections"].items():
            detected = f"{network}: {len(found)} detection{'s' * (len(found) != 1)}"
            panels.append((detected, _draw(pixels, scale, found[::-1], PREDICTED_COLOR)))  # the best lie on top
        parts.append(f"<div class=row>{''.join(text.image(url, name) for name, url in panels)}</div>")
    return parts


def _decode(image):
    """Returns the resized pixels of an image, and the factor of the coordinates.

    Returns:
      uint8 pixels with `_LONGER_SIDE`, and the factor from the image's coordinates to those of the pixels.
    """
    from PIL import Image

    with Image.open(io.BytesIO(base64.b64decode(image["jpeg"])), formats=("JPEG",)) as stored:
        scale = _LONGER_SIDE / max(image["width"], image["height"])
        size = tuple(max(1, round(image[side] * scale)) for side in ("width", "height"))
        return np.asarray(stored.convert("RGB").resize(size, Image.Resampling.BICUBIC)), scale


def _draw(pixels, scale, objects, color):
    """Returns the URL of an image with the boxes of objects."""
    from PIL import Image

    labels = [f"{o['class']} {o['score']:.2f}" if "score" in o else o["class"] for o in objects]
    drawn = boxes.draw(pixels, np.array([o["box"] for o in objects]).reshape(-1, 4) * scale, labels, color)
    content = io.BytesIO()
    Image.fromarray(drawn).save(content, "JPEG", quality=_QUALITY, subsampling=0)
    return f"data:image/jpeg;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
