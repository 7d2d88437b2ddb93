"""Outputs, losses, gradients and steps equal those of the authors' CDL program."""

from tests.parity import runners_cdl
from tests.parity.replay import replay

SYSTEM = "cdl"


def test_equals_the_authors_program(path, record_property):
    replay(path, runners_cdl.RUNNERS, record_property)
