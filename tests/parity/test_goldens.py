"""Replays fixtures that the authors' programs computed: `pytest tests/parity --goldens DIR`.

A case is a pair `<name>.json` and `<name>.npz`, anywhere below DIR. Its `kind` chooses the runner; a kind without one
is reported as skipped, with its name.
"""

import json

import numpy as np
import pytest

from tests.parity import runners_cdl, runners_dkt, runners_okddip, runners_vkd

RUNNERS = {
    "cdl": runners_cdl.RUNNERS,
    "dkt": runners_dkt.RUNNERS,
    "okddip": runners_okddip.RUNNERS,
    "vkd": runners_vkd.RUNNERS,
}
CHECKS = {("okddip", "structure"): runners_okddip.check_structure}  # of cases without arrays


def pytest_generate_tests(metafunc):
    cases = sorted(metafunc.config.getoption("--goldens").rglob("*.json"))
    metafunc.parametrize("path", cases, ids=[f"{path.parent.name}/{path.stem}" for path in cases])


def test_equals_the_authors_program(path, record_property):
    case = json.loads(path.read_text())
    if check := CHECKS.get((case["system"], case["kind"])):
        check(case)
        return
    runner = RUNNERS.get(case["system"], {}).get(case["kind"])
    if runner is None:
        pytest.skip(f"no runner for kind {case['kind']!r} of system {case['system']!r}")
    with np.load(path.with_suffix(".npz")) as file:
        arrays = dict(file)
    ours = runner({**case["config"], "case_what": case["what"]}, arrays)
    wanted = {name: array for name, array in arrays.items() if name.startswith(("out/", "grad/"))}
    assert wanted, "the case names nothing to compare"
    assert set(wanted) <= set(ours), f"the runner does not compute {sorted(set(wanted) - set(ours))}"
    steepest = max((np.abs(array).max() for name, array in wanted.items() if name.startswith("grad/")), default=0.0)
    errors = {
        name: relative_error(ours[name], array, steepest if name.startswith("grad/") else 0.0)
        for name, array in wanted.items()
    }
    worst = {}
    for name, error in errors.items():
        worst[quantity(name)] = max(float(error), worst.get(quantity(name), 0.0))
    record_property("parity", {"system": case["system"], "kind": case["kind"], **worst})
    failed = {
        name: f"{errors[name]:.2e} > {limit(case, name):.0e}" for name in wanted if errors[name] > limit(case, name)
    }
    assert not failed, failed


def relative_error(ours, wanted, steepest=0.0) -> float:
    """max|ours - wanted| / max|wanted|; zeros are compared on a scale of 1e-3, what rounding has left of a gradient of
    zero on that of the case's `steepest`."""
    ours, wanted = np.asarray(ours, np.float64), np.asarray(wanted, np.float64)
    assert ours.shape == wanted.shape, (ours.shape, wanted.shape)
    assert np.isfinite(ours).all() or not np.isfinite(wanted).all()
    difference = np.abs(ours - wanted).max(initial=0.0)
    largest = np.abs(wanted).max(initial=0.0)
    if 0 < largest < 1e-12 < steepest:
        largest = steepest
    return difference / (largest or 1e-3)


def quantity(name) -> str:
    """What an array holds, in the words of the cases' tolerances."""
    if name.startswith("grad/"):
        return "grads"
    after = "param_after" in name or "params_after" in name
    return "after_steps" if after or name.startswith(("out/after_", "out/final/")) else "values"


def limit(case, name) -> float:
    """The tolerance that a case states for one of its arrays."""
    what, stated, more = quantity(name), case["tol"], case.get("tolerance", {})
    of_values = isinstance(more, dict) and what == "values"
    return more.get("relative_to_max_abs", stated[what]) if of_values else stated[what]
