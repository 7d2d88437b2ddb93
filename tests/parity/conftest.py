"""Deals the cases below the folder of `--goldens` out to the test files, by system."""

from tests.parity.replay import find_cases


def pytest_generate_tests(metafunc):
    if "path" in metafunc.fixturenames:
        cases = find_cases(metafunc.config.getoption("--goldens"), (metafunc.module.SYSTEM,))
        metafunc.parametrize("path", cases, ids=[f"{path.parent.name}/{path.stem}" for path in cases])
