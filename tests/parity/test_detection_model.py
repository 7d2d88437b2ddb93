"""Detection's networks equal the authors', in plain form and on larger canvases."""

import json

import pytest

from tests.parity import runners_detection_model
from tests.parity.replay import replay

SYSTEM, PART = "vkd", "detection_model"


def test_equals_the_authors_program(path, record_property):
    replay(path, runners_detection_model.RUNNERS, record_property)


def test_variants_equal_the_authors_program(path, record_property):
    kind = json.loads(path.read_text())["kind"]
    variants = runners_detection_model.VARIANTS.get(kind, [])
    if not variants:
        pytest.skip(f"kind {kind!r} has one form")
    for variant in variants:
        replay(path, {kind: variant}, record_property)
