"""Outputs, losses, gradients and steps equal those of the authors' OKDDip program."""

import json

from tests.parity import runners_okddip
from tests.parity.replay import replay

SYSTEM = "okddip"


def test_equals_the_authors_program(path, record_property):
    case = json.loads(path.read_text())
    if case["kind"] == "structure":  # has no arrays
        runners_okddip.check_structure(case)
    else:
        replay(path, runners_okddip.RUNNERS, record_property)
