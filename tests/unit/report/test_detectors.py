"""The comparison of detectors from files: numbers, curves, the sheet of images."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from cdl_jax.report import detectors, plots
from cdl_jax.report.__main__ import main
from cdl_jax.report.groups import read_groups
from tests.support import stored_runs
from tests.unit.report.test_detection_section import FOUND, detections


def run(folder, ap, seed=0, curve=0.5, found=FOUND, weight=0.0, image_id=7):
    """Stores a finished run of one task, and returns its folder."""
    folder.parent.mkdir(exist_ok=True)
    stored_runs.store(folder, {"seed": seed, "distill": {"weight": weight}}, student=ap)
    content = json.loads((folder / "results.json").read_text())
    content |= {"metric": "AP", "extra_metrics": [{"student/AP": ap, "student/AP50": 2 * ap}]}
    (folder / "results.json").write_text(json.dumps(content))
    boxes = detections(found)
    boxes["curves"]["student"]["0.5"] = [curve] * 101
    boxes["images"][0]["id"] = image_id
    (folder / "detections.json").write_text(json.dumps(boxes))
    return folder


@pytest.fixture
def folders(tmp_path):
    rows = ("alone", 20.0, 0, 0.4), ("alone", 22.0, 1, 0.6), ("vkd", 30.0, 0, 0.8), ("vkd", 30.0, 1, 0.8)
    return [
        run(tmp_path / name / f"seed_{seed}", ap, seed, curve, weight=float(name == "vkd"))
        for name, ap, seed, curve in rows
    ]


def test_the_table_has_the_numbers_that_some_run_has(folders):
    assert detectors.table(read_groups(folders), ["alone", "vkd"]) == [
        ["run", "network", "seeds", "AP", "AP50"],
        ["alone", "student", "2", "21.00 ± 1.41", "42.00 ± 2.83"],
        ["vkd", "student", "2", "30.00 ± 0.00", "60.00 ± 0.00"],
    ]


def test_curves_are_means_over_seeds(folders, monkeypatch):
    drawn = {}
    monkeypatch.setattr(plots, "precision_recall", lambda curves, title: drawn.update(curves) or title)
    assert detectors.curves_plot(read_groups(folders), ["alone", "vkd"]) == "mean over classes, IoU 0.5"
    np.testing.assert_allclose(drawn["alone"], [0.5] * 101)
    np.testing.assert_allclose(drawn["vkd"], [0.8] * 101)
    assert list(drawn) == ["alone", "vkd"]


def test_the_sheet_has_a_column_for_truth_and_each_run(folders):
    sheet = np.asarray(Image.open(io.BytesIO(detectors.image_sheet(read_groups(folders), ["alone", "vkd"]))))
    assert sheet.shape == (24 + 120 + 6, 3 * 246, 3)
    # An image of 200 x 100 in a side of 240: the true box of x 50 begins at 60, the detected one of x 20 at 24.
    inside = sheet[24 + 3 :, 3:]
    assert tuple(inside[80, 60]) == (0x2E, 0xE6, 0xA6)
    assert tuple(inside[72, 246 + 24]) == tuple(inside[72, 2 * 246 + 24]) == (0xFF, 0xB0, 0x00)
    assert (sheet[:24, 246:] < 100).any() and tuple(sheet[148, 5]) == (255, 255, 255)


def test_the_command_writes_table_curves_and_images(folders, tmp_path, capsys):
    files = [tmp_path / name for name in ("table.md", "curves.svg", "sheet.png")]
    words = [*map(str, folders), "--label-by-folder", "--out", str(files[0]), "--plot", str(files[1])]
    assert main(["detections", *words, "--images", str(files[2])]) == 0
    assert "| vkd | student | 2 | 30.00 ± 0.00 | 60.00 ± 0.00 |" in files[0].read_text()
    assert "IoU 0.5" in files[1].read_text() and files[2].read_bytes()[1:4] == b"PNG"
    assert "21.00 ± 1.41" in capsys.readouterr().out


def test_runs_that_cannot_be_compared_are_one_line(folders, tmp_path, capsys):
    other = run(tmp_path / "other", 1.0, weight=2.0, image_id=8)
    assert main(["detections", *map(str, folders), str(other), "--images", str(tmp_path / "a.png")]) == 2
    assert "these runs have different test images: name runs with one data set" in capsys.readouterr().err
    (other / "detections.json").unlink()
    assert main(["detections", str(other), "--plot", str(tmp_path / "a.svg")]) == 2
    assert "--plot: none of these runs has detections.json" in capsys.readouterr().err
    assert main(["detections", str(other), "--images", str(tmp_path / "a.png")]) == 2
    assert "other has no detections.json: leave the run out" in capsys.readouterr().err
    stored_runs.store(tmp_path / "classifier", {"seed": 0}, student=50.0)
    assert main(["detections", str(tmp_path / "classifier")]) == 2
    assert "classifier has no finished detector: name runs of method=vidt" in capsys.readouterr().err
