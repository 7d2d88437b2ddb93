"""OKDDip's epoch runner takes every method: an epoch over a step case's batches."""

import json

import numpy as np
import pytest

from tests.parity import steps_okddip


@pytest.mark.parametrize("case", ["step_baseline_resnet", "step_dml_resnet_m3"])
def test_an_epoch_has_the_losses_and_weights_of_its_steps(case, pytestconfig):
    found = sorted(pytestconfig.getoption("--goldens").rglob(f"{case}.json"))
    if not found:
        pytest.skip(f"{case} is not among these fixtures: give --goldens a folder with all of them")
    config = json.loads(found[0].read_text())["config"]
    with np.load(found[0].with_suffix(".npz")) as file:
        arrays = {name.replace("in/step", "in/train"): array for name, array in file.items()}
    ours = steps_okddip.run_epochs({**config, "epochs": 1, "milestones": []}, arrays)
    losses = [arrays[f"out/step{i}/loss/total"] for i in range(2)]
    np.testing.assert_allclose(ours["out/epoch0/train_loss"], np.mean(losses), rtol=1e-4)
    accuracy = "mean_test_accTop1" if "dml" in case else "test_accTop1"
    assert ours["out/best_epoch"] == 1 and ours["out/best_accuracy"] == pytest.approx(ours[f"out/epoch0/{accuracy}"])
    assert ours["out/epoch0/weight"] == 0.0 and ours["out/epoch0/lr"] == pytest.approx(config["lr"])
    after = {name: array for name, array in arrays.items() if name.startswith("out/after_2_steps/")}
    assert after
    for name, array in after.items():
        found = ours[name.replace("out/after_2_steps/", "out/final/")]
        np.testing.assert_allclose(found, array, atol=1e-3 * np.abs(array).max(), err_msg=name)
