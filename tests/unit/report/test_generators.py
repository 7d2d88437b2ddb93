"""The table and the samples of generators."""

import io
from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from cdl_jax.errors import UserError
from cdl_jax.report import generators
from cdl_jax.report.groups import Group, Run

CONFIG = {
    "gan.vkd": "none",
    "gan.vkd_norm": "whiten",
    "gan.vkd_scope": "each",
    "gan.vkd_projector": "",
    "gan.policy": "translation",
    "gan.lecam_weight": 0.0,
    "gan.kd_terms": [],
    "gan.teacher_shuffled": False,
    "gan.image_size": 2,
    "gan.sheet_columns": 4,
    "teacher.weights": "vit.npz",
}


def run(folder, distance, best, accuracy=50.0):
    names = ("kid_net", "class_accuracy", "within_class_variance", "training_called_real", "test_called_real")
    extra = dict.fromkeys((f"generator/{name}" for name in names), 1.0) | {"generator/class_accuracy": accuracy}
    numbers = {"generator": {"last": distance, "best": best}}
    return Run(folder, True, numbers, ("generator",), extra, "fd_net")


def test_distances_are_compared_by_seed(tmp_path):
    plain = Group(CONFIG, {(0, 0, 0): run(tmp_path, 10.0, 9.0), (1, 0, 0): run(tmp_path, 20.0, 20.0)})
    config = {**CONFIG, "gan.vkd": "replaced", "teacher.weights": "random"}
    taught = Group(config, {(0, 0, 0): run(tmp_path, 8.0, 8.0, 70.0), (1, 0, 0): run(tmp_path, 16.0, 15.0, 80.0)})
    head, first, second = generators.table([plain, taught])
    assert head[:6] == ["setting", "seeds", "fd_net ↓", "Δ vs. first", "best", "kernel distance"]
    assert first[:5] == ["biggan + da", "2", "15.00 ± 7.07", "-", "14.50 ± 7.78"]
    assert second[0] == "vkd (our reading: replaced), whiten each, random teacher"
    longer = Group({**CONFIG, "train.epochs": 151}, plain.runs)
    names = [row[0] for row in generators.table([Group({**CONFIG, "train.epochs": 150}, plain.runs), longer, taught])]
    assert names[1:] == ["biggan + da, train.epochs=150", "biggan + da, train.epochs=151", second[0]]
    assert second[2:5] == ["12.00 ± 5.66", "-3.00 ± 1.00", "11.50 ± 4.95"] and second[6] == "75.00 ± 7.07"


def test_runs_of_two_measuring_networks_are_refused_and_missing_metrics_left_out(tmp_path):
    group = Group(CONFIG, {(0, 0, 0): run(tmp_path, 10.0, 9.0)})
    other = Group({**CONFIG, "gan.vkd": "replaced"}, {(0, 0, 0): replace(run(tmp_path, 1.0, 1.0), metric="fd_other")})
    with pytest.raises(UserError, match=r"have different metrics \(fd_net, fd_other\): name those of one"):
        generators.table([group, other])
    fewer = Group(CONFIG, {(0, 0, 0): replace(run(tmp_path, 10.0, 9.0), extra_metrics={})})
    assert generators.table([fewer])[1][5:] == ["-"] * 5


def test_a_classifier_is_no_generator(tmp_path):
    group = Group({"method": "cdl"}, {(0, 0, 0): Run(tmp_path, True, {"student": {"last": 50.0}})})
    with pytest.raises(UserError, match="has no finished generator: name runs of method=gan"):
        generators.table([group])


def test_a_sheet_has_the_last_samples_of_each_seed_in_columns_of_a_class(tmp_path):
    runs = {}
    for seed in range(2):
        folder = tmp_path / f"seed_{seed}"
        (folder / "samples").mkdir(parents=True)
        for step in (5, 10):
            # Three classes, four samples of 2 x 2 pixels; the level is class, sample and seed.
            levels = np.add.outer(np.array([0, 100, 200]), np.array([0, 10, 20, 30])) + seed + (5 if step == 5 else 0)
            pixels = np.repeat(np.kron(levels, np.ones((2, 2)))[..., None], 3, axis=2).astype(np.uint8)
            Image.fromarray(pixels).save(folder / "samples" / f"step_{step:08d}.png")
        runs[seed, 0, 0] = run(folder, 1.0, 1.0)
    sheet = np.asarray(Image.open(io.BytesIO(generators.samples_sheet([Group(CONFIG, runs)]))))
    # Two panels of 3 classes x 2 pixels and a margin of 6; three samples below a header of 22.
    assert sheet.shape == (22 + 3 * 2 + 6, 2 * (3 * 2 + 6), 3)
    panels = [sheet[22:28:2, x : x + 6 : 2, 0].tolist() for x in (0, 12)]
    assert panels == [[[row + seed + c for c in (0, 100, 200)] for row in (0, 10, 20)] for seed in range(2)]
    with pytest.raises(UserError, match="has no folder samples: leave the run out"):
        generators.samples_sheet([Group(CONFIG, {(0, 0, 0): run(tmp_path / "none", 1.0, 1.0)})])
