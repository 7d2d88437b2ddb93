"""Makes detections.json from the record of a run.

The file has curves of precision and a few images with boxes.
"""

import base64
import io
from typing import TYPE_CHECKING

import numpy as np

from cdl_jax import schema
from cdl_jax.data.image_dataset import load_file
from cdl_jax.run.results import Record
from cdl_jax.training.detection import MIN_SCORE, example_rows
from cdl_jax.training.experiment import Experiment

if TYPE_CHECKING:
    import PIL.Image

_LONGER_SIDE = 400  # pixels of a stored image, at most
_QUALITY = 90  # of JPEG


def collect(experiment: Experiment, record: Record) -> dict:
    """Returns the content of detections.json.

    The content is a function of the record and the test images.

    Args:
      record: after at least one task.

    Raises:
      UserError: an image cannot be read.
    """
    stream, data = experiment.stream, experiment.stream.test
    names = dict(zip(stream.class_order, stream.class_names, strict=True))
    seen = {number: names[number] for task in stream.tasks[: record.task] for number in task.classes}
    return {
        "schema": schema.SCHEMA,
        "task": record.task - 1,
        "classes": list(seen.values()),
        "min_score": MIN_SCORE,
        "curves": {network: details["curves"] for network, details in record.detections.items()},
        "images": [_image(data, row, seen, record.detections) for row in example_rows(data).tolist()],
    }


def _image(data, row, names, detections):
    targets = data.targets(row)
    low, high = np.split(targets.boxes.astype(np.float64), 2, axis=1)
    boxes = np.concatenate([low, high - low], axis=1).round(2).tolist()
    height, width = data.sizes[row].tolist()
    return {
        "id": int(data.image_ids[row]),
        "height": height,
        "width": width,
        "jpeg": _jpeg(load_file(data.files[row])),
        "objects": [
            {"class": names[label], "box": box}
            for label, box in zip(targets.labels.tolist(), boxes, strict=True)
            if label in names
        ],
        "detections": {
            network: [
                {"class": names[found["label"]], "score": found["score"], "box": found["box"]}
                for found in details["examples"]
                if found["row"] == row and found["label"] in names  # outputs that are no category have no name
            ]
            for network, details in detections.items()
        },
    }


def _jpeg(image: "PIL.Image.Image") -> str:
    """Returns an image as JPEG in base64.

    An image whose longer side is above the limit becomes smaller.
    """
    image.thumbnail((_LONGER_SIDE, _LONGER_SIDE))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=_QUALITY, subsampling=0)
    return base64.b64encode(content.getvalue()).decode("ascii")
