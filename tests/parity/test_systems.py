"""Every case is replayed: its system has a test file."""

import json

from tests.parity.replay import PARTS, SYSTEMS


def test_no_case_belongs_to_an_unknown_system(pytestconfig):
    paths = pytestconfig.getoption("--goldens").rglob("*.json")
    assert {json.loads(path.read_text())["system"] for path in paths} <= set(SYSTEMS)


def test_no_kind_belongs_to_two_parts():
    kinds = [kind for kinds in PARTS.values() for kind in kinds]
    assert sorted(set(kinds)) == sorted(kinds)
