"""Detection's matching, losses, distillation, training steps equal the authors'."""

from tests.parity import runners_detection_losses
from tests.parity.replay import replay

SYSTEM, PART = "vkd", "detection_losses"


def test_equals_the_authors_program(path, record_property):
    replay(path, runners_detection_losses.RUNNERS, record_property)
