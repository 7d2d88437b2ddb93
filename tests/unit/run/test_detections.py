"""detections.json by hand: images, true boxes of the classes seen, and detections."""

import base64
import io
import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cdl_jax.data.detection.coco_files import DetectionSet
from cdl_jax.run import detections
from cdl_jax.run.results import Record
from tests.support import coco_sets

CURVES = {"0.5": [1.0], "0.75": [0.5], "classes": [[1.0], [0.5]]}


@pytest.fixture(scope="module")
def stream(tmp_path_factory):
    return coco_sets.stream_of_three(tmp_path_factory.mktemp("coco"))


def collect(stream, examples, task=2):
    record = Record(task=task, detections={"student": {"curves": CURVES, "examples": examples}})
    return json.loads(json.dumps(detections.collect(SimpleNamespace(stream=stream), record)))


def pixels(image):
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(image["jpeg"]))))


def test_boxes_of_the_classes_seen(stream):
    examples = [
        {"row": 0, "label": 7, "score": 0.9, "box": [1, 2, 3, 4]},
        {"row": 2, "label": 3, "score": 0.4, "box": [5, 6, 7, 8]},
        {"row": 2, "label": 55, "score": 0.3, "box": [5, 6, 7, 8]},  # an output that is no category
    ]
    content = collect(stream, examples)
    assert (content["task"], content["classes"], content["min_score"]) == (1, ["cat", "hat"], 0.3)
    assert content["curves"] == {"student": CURVES}
    first, second, third = content["images"]
    assert [image["id"] for image in content["images"]] == [4, 7, 9]
    assert first["objects"] == [{"class": "hat", "box": [1, 2, 3, 4]}]  # no crowd, and "ring" is not seen yet
    assert first["detections"] == {"student": [{"class": "hat", "score": 0.9, "box": [1, 2, 3, 4]}]}
    assert second["detections"] == {"student": []}
    assert third["objects"] == [{"class": "cat", "box": [50, 0, 10, 20.5]}]  # clipped to the image
    assert third["detections"]["student"] == [{"class": "cat", "score": 0.4, "box": [5, 6, 7, 8]}]
    assert [o["class"] for o in collect(stream, [], task=3)["images"][0]["objects"]] == ["ring", "hat"]


def test_images_are_small_and_the_same_bytes_each_time(stream, tmp_path):
    content = collect(stream, [])
    assert content == collect(stream, [])
    sides = [(image["height"], image["width"]) for image in content["images"]]
    assert sides == [pixels(image).shape[:2] for image in content["images"]] == [(64, 48), (50, 50), (40, 60)]
    ramp = np.tile(np.linspace(0, 255, 1000).astype(np.uint8)[None, :, None], (500, 1, 3))
    Image.fromarray(ramp).save(tmp_path / "large.png")
    objects = stream.test.objects.take(stream.test.objects.rows == 0)
    sizes = np.array([[500, 1000]], np.int32)
    large = DetectionSet("large", stream.test.categories, np.array([8]), (tmp_path / "large.png",), sizes, objects)
    several = SimpleNamespace(
        test=large, class_order=stream.class_order, class_names=stream.class_names, tasks=stream.tasks
    )
    (image,) = collect(several, [])["images"]
    assert (image["height"], image["width"]) == (500, 1000) and pixels(image).shape == (200, 400, 3)
    np.testing.assert_allclose(pixels(image)[100, :, 0], np.linspace(0, 255, 400), atol=4)
