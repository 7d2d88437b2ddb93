"""Compares detectors: COCO's numbers, precision over recall, and boxes.

The boxes are those in the same test images.
"""

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cdl_jax.errors import UserError
from cdl_jax.evaluation import coco
from cdl_jax.report import boxes, detection_section, plots
from cdl_jax.report.groups import Group
from cdl_jax.report.tables import format_mean_std
from cdl_jax.report.text import Rows

_SIDE = 240  # pixels of the longer side of an image in the sheet
_MARGIN = 3  # pixels around it
_MAX_IMAGES = 4
_HEADER = 24  # pixels above each column


def table(groups: Sequence[Group], names: Sequence[str]) -> Rows:
    """Returns a table of COCO's numbers after the last task in percent.

    A number has the mean and the standard deviation over finished seeds.

    Args:
      groups: as `read_groups` returns them.
      names: labels of the groups.

    Returns:
      A row for each network of each group. Numbers that no network has, such as those of large objects, are left out.

    Raises:
      UserError: a group has no detector.
    """
    numbers = {}
    for label, group in zip(names, groups, strict=True):
        networks = _networks(group)
        if not networks:
            raise UserError(f"{_first_folder(group)} has no finished detector: name runs of method=vidt")
        for network in networks:
            numbers[label, network] = {
                name: list(group.values(network, name, finished=True).values()) for name in coco.NUMBERS
            }
    columns = [name for name in coco.NUMBERS if any(row[name] for row in numbers.values())]
    rows = [
        [label, network, str(len(row["AP"])), *(format_mean_std(row[name]) for name in columns)]
        for (label, network), row in numbers.items()
    ]
    return [["run", "network", "seeds", *columns], *rows]


def curves_plot(groups: Sequence[Group], names: Sequence[str], iou: str = "0.5") -> str:
    """Returns an SVG plot of precision over recall.

    A curve is the mean over classes and then over seeds.

    Args:
      groups: as `read_groups` returns them.
      names: labels of the groups.
      iou: "0.5" or "0.75", the threshold of a match.

    Raises:
      UserError: no run has detections.json.
    """
    curves = {}
    for label, group in zip(names, groups, strict=True):
        stored = _contents(group)
        for network in _networks(group):
            own = [content["curves"][network][iou] for content in stored if content["curves"][network][iou]]
            if own:
                curves[label if len(_networks(group)) == 1 else f"{label}, {network}"] = np.mean(own, axis=0).tolist()
    if not curves:
        raise UserError(f"--plot: none of these runs has {detection_section.FILE}: leave --plot out")
    return plots.precision_recall(curves, f"mean over classes, IoU {iou}")


def image_sheet(groups: Sequence[Group], names: Sequence[str]) -> bytes:
    """Returns a PNG with a row for each of a few test images.

    A row has the true boxes, then the boxes of each run's first seed.

    Args:
      groups: as `read_groups` returns them.
      names: labels of the groups.

    Raises:
      UserError: a run lacks detections.json, or the runs have other test images.
    """
    from PIL import Image

    stored = {}
    for label, group in zip(names, groups, strict=True):
        contents = _contents(group)
        if not contents:
            raise UserError(f"--images: {_first_folder(group)} has no {detection_section.FILE}: leave the run out")
        stored[label] = contents[0]
    first = next(iter(stored.values()))
    ids = [[image["id"] for image in content["images"]] for content in stored.values()]
    if any(own != ids[0] for own in ids):
        raise UserError("--images: these runs have different test images: name runs with one data set")
    rows = [_row(stored, i) for i in range(min(_MAX_IMAGES, len(first["images"])))]
    heads = ["true boxes", *(f"{label}{suffix}" for label, content in stored.items() for suffix in _suffixes(content))]
    sheet = np.concatenate([_header(heads, rows[0].shape[1]), *rows])
    out = io.BytesIO()
    Image.fromarray(sheet).save(out, "PNG", optimize=True)
    return out.getvalue()


def _networks(group) -> tuple[str, ...]:
    """Returns the networks of a group that have an average precision."""
    return tuple(name for name in next(iter(group.runs.values())).metrics if group.values(name, "AP", finished=True))


def _first_folder(group):
    return next(iter(group.runs.values())).folder


def _contents(group) -> list[Mapping[str, Any]]:
    """Returns the detections.json of each finished run that has it."""
    found = (detection_section.read(run.folder) for run in group.runs.values() if run.finished)
    return [content for content in found if content is not None]


def _suffixes(content):
    networks = list(content["curves"])
    return [""] if len(networks) == 1 else [f", {network}" for network in networks]


def _row(stored, index):
    """Returns the pixels of one image's row."""
    from PIL import Image

    image = next(iter(stored.values()))["images"][index]
    with Image.open(io.BytesIO(base64.b64decode(image["jpeg"])), formats=("JPEG",)) as opened:
        scale = _SIDE / max(image["width"], image["height"])
        size = tuple(round(image[side] * scale) for side in ("width", "height"))
        pixels = np.asarray(opened.convert("RGB").resize(size, Image.Resampling.BICUBIC))
    panels = [_panel(pixels, scale, image["objects"], detection_section.TRUE_COLOR)]
    for content in stored.values():
        for found in content["images"][index]["detections"].values():
            panels.append(_panel(pixels, scale, found[::-1], detection_section.PREDICTED_COLOR))
    return np.concatenate(panels, axis=1)


def _panel(pixels, scale, objects, color):
    """Returns the image with its boxes on white, as wide as a column."""
    panel = np.full((pixels.shape[0] + 2 * _MARGIN, _SIDE + 2 * _MARGIN, 3), 255, np.uint8)
    labels = [f"{o['class']} {o['score']:.2f}" if "score" in o else o["class"] for o in objects]
    drawn = boxes.draw(pixels, np.array([o["box"] for o in objects]).reshape(-1, 4) * scale, labels, color)
    panel[_MARGIN : _MARGIN + drawn.shape[0], _MARGIN : _MARGIN + drawn.shape[1]] = drawn
    return panel


def _header(heads, width):
    """Returns the white strip with the name of each column."""
    strip = np.full((_HEADER, width, 3), 255, np.uint8)
    step = width // len(heads)
    for i, head in enumerate(heads):
        strip[:, i * step : (i + 1) * step] = boxes.write(strip[:, i * step : (i + 1) * step], head)
    return strip
