"""Deals the cases below `--goldens` out to the test files, by system and part."""

from tests.parity.replay import find_cases


def pytest_generate_tests(metafunc):
    if "path" in metafunc.fixturenames:
        module, folder = metafunc.module, metafunc.config.getoption("--goldens")
        cases = find_cases(folder, module.SYSTEM, getattr(module, "PART", None))
        metafunc.parametrize("path", cases, ids=[f"{path.parent.name}/{path.stem}" for path in cases])
