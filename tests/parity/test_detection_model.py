"""The networks of detection equal those of the authors' code, in the plain form and on larger canvases."""

import json

from tests.parity import runners_detection_model
from tests.parity.replay import replay

SYSTEM, PART = "vkd", "detection_model"


def test_equals_the_authors_program(path, record_property):
    replay(path, runners_detection_model.RUNNERS, record_property)


def test_variants_equal_the_authors_program(path, record_property):
    kind = json.loads(path.read_text())["kind"]
    for variant in runners_detection_model.VARIANTS.get(kind, []):
        replay(path, {kind: variant}, record_property)
