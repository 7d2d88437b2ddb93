"""Detection's targets, transforms and evaluation equal those of the authors' code."""

from tests.parity import runners_detection_data
from tests.parity.replay import replay

SYSTEM, PART = "vkd", "detection_data"


def test_equals_the_authors_program(path, record_property):
    replay(path, runners_detection_data.RUNNERS, record_property)
