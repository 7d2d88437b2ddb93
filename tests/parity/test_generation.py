"""Generation's networks, losses, augmentation and measures equal the authors'."""

from tests.parity import runners_generation
from tests.parity.replay import replay

SYSTEM, PART = "vkd", "generation"


def test_equals_the_authors_program(path, record_property):
    replay(path, runners_generation.RUNNERS, record_property)
