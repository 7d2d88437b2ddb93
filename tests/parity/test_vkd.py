"""Outputs, losses, gradients and steps equal those of the authors' VkD program."""

from tests.parity import runners_vkd
from tests.parity.replay import replay

SYSTEM = "vkd"


def test_equals_the_authors_program(path, record_property):
    replay(path, runners_vkd.RUNNERS, record_property)
