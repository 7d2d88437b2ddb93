"""The networks of detection equal those of the authors' code, in the plain form and on larger canvases."""

from tests.parity import runners_detection_model
from tests.parity.replay import replay

SYSTEM, PART = "vkd", "detection_model"


def test_equals_the_authors_program(path, record_property):
    replay(path, runners_detection_model.RUNNERS, record_property)
