"""Every case is replayed: its system has a test file."""

import json

from tests.parity.replay import SYSTEMS


def test_no_case_belongs_to_an_unknown_system(pytestconfig):
    paths = pytestconfig.getoption("--goldens").rglob("*.json")
    assert {json.loads(path.read_text())["system"] for path in paths} <= set(SYSTEMS)
