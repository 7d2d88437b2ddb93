"""Outputs, losses, gradients and steps equal those of the authors' DKT program."""

from tests.parity import runners_dkt
from tests.parity.replay import replay

SYSTEM = "dkt"


def test_equals_the_authors_program(path, record_property):
    replay(path, runners_dkt.RUNNERS, record_property)
