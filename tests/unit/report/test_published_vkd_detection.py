"""Published results of ViDT and VkD on COCO: numbers, settings of rows, and runs."""

import json

import pytest

from cdl_jax import config as configs
from cdl_jax import published
from cdl_jax.evaluation.metrics import named_metrics
from cdl_jax.published import vkd_detection
from cdl_jax.report import replication
from cdl_jax.report.__main__ import main as report_main
from cdl_jax.report.groups import read_groups
from configs.coco_vidt import get_config

TABLE = published.table("vkd_detection")
SETTINGS = "reference=false or reference=true"


def numbers(*choices):
    (cell,) = (cell for cell in TABLE.cells if tuple(cell.choices.values()) == choices)
    return tuple(cell.values.values())


def flat_config(**choices):
    return configs.flatten(vkd_detection.build(**choices))


def settings(*keys, **choices):
    config = flat_config(**choices)
    return tuple(tuple(value) if isinstance(value := config[key], list) else value for key in keys)


def rows(folder, values, changes=(), **choices):
    """Returns the table's rows for a run with these COCO numbers after its one task."""
    config = vkd_detection.build(**choices)
    config.update_from_flattened_dict(dict(changes))
    networks = {"student": {"metrics": named_metrics([[values["AP"]]], [1])}}
    measures = {f"student/{name}": value for name, value in values.items()}
    folder.mkdir()
    results = {"status": "finished", "networks": networks, "headline": ["student"], "extra_metrics": [measures]}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.json").write_text(json.dumps({"config": config.to_dict()}))
    return replication.table(TABLE, replication.matches(read_groups([folder]), TABLE))[1:]


def test_stored_numbers_equal_the_published_ones():
    assert len(TABLE.cells) == len({tuple(cell.choices.values()) for cell in TABLE.cells}) == 21
    assert list(TABLE.metrics) == ["AP", "AP50", "AP75", "AP small", "AP medium", "AP large"]
    assert numbers("nano", "none", "", "50", "") == (40.4, 59.9, 43.0, 23.1, 42.8, 55.9)
    assert numbers("base", "none", "", "150", "") == (50.4, 70.4, 54.8, 34.1, 54.2, 67.4)
    assert numbers("tiny", "projected_tokens", "base", "50", "") == (46.9, 66.6, 50.9, 27.8, 49.8, 64.6)
    assert numbers("small", "token_matching", "base", "50", "")[0] == 49.2
    assert [numbers(name, "none", "", "150", "without_neck")[0] for name in ("nano", "tiny", "small")] == [
        28.7, 36.3, 41.6,
    ]  # fmt: skip


def test_the_config_file_has_every_cell():
    for cell in TABLE.cells:
        text = ",".join(f"{key}={value}" for key, value in cell.choices.items())
        expected = flat_config(**cell.choices) | {"seed": 42}
        assert configs.flatten(get_config(text)) == expected
    without_teacher = flat_config(student="tiny")
    assert not any(key.startswith("teacher.") for key in without_teacher)


def test_rows_have_the_networks_the_epochs_and_the_images_of_a_step_of_their_commands():
    keys = ("student.embed_dim", "student.depths", "train.epochs", "train.batch_size", "distill.name")
    assert settings(*keys) == (48, (2, 2, 6, 2), 50, 16, "none")
    vkd = {"student": "tiny", "distill": "projected_tokens"}
    assert settings(*keys, **vkd) == (96, (2, 2, 6, 2), 50, 12, "projected_tokens")
    assert settings("train.batch_size", "teacher.embed_dim", teacher="small", **vkd) == (16, 96)
    assert settings(*keys, student="base", epochs="150") == (128, (2, 2, 18, 2), 150, 16, "none")
    matching = settings("train.batch_size", "teacher.weights", "teacher.embed_dim", distill="token_matching")
    assert matching == (16, "vidt_base_50.pth", 128)
    assert settings("teacher.weights", distill="projected_tokens") == ("vidt_base_150.pth",)
    without = settings("student.neck", "vidt.class_loss", layout="without_neck")
    assert without == (False, "softmax") and settings("student.neck", "vidt.class_loss") == (True, "focal")
    recipe = settings("optim.learning_rate", "optim.weight_decay", "optim.clip_norm", "student.dropout")
    assert recipe == (1e-4, 1e-4, 0.1, 0.1)


def test_a_run_is_compared_with_its_cell_in_all_six_numbers(tmp_path):
    values = {"AP": 42.6, "AP50": 62.0, "AP75": 46.2, "AP small": 25.0, "AP medium": 45.0, "AP large": 61.1, "AR1": 1.0}
    changes = {"augment.canvases": ((1344, 1344),), "vidt.solver": "device", "student.sampling": "gather"}
    (row,) = rows(tmp_path / "a", values, changes, distill="projected_tokens")
    assert row[:3] == ["nano projected_tokens base 50", SETTINGS, "1"]
    verdicts = ["too few seeds (-0.40)", "too few seeds (-0.30)", "too few seeds (+0.00)", "too few seeds (+0.20)"]
    verdicts += ["too few seeds (-0.30)", "too few seeds (+1.00)"]
    assert row[5:21:3] == verdicts
    assert row[3:5] == ["43.00", "42.60"] and "mid-training" in row[-1]


@pytest.mark.parametrize("cell", TABLE.cells, ids=lambda cell: " ".join(filter(None, cell.choices.values())))
def test_each_cell_matches_a_run_of_its_own_config_alone(tmp_path, cell):
    (row,) = rows(tmp_path / "a", {"AP": cell.values["AP"]}, **cell.choices)
    assert row[0] == " ".join(filter(None, cell.choices.values()))
    assert (row[1], row[5]) == (SETTINGS, "too few seeds (+0.00)")


def test_runs_with_other_settings_get_no_verdict(tmp_path):
    (divided,) = rows(tmp_path / "a", {"AP": 40.0}, {"data.num_tasks": 2, "data.task_sizes": (40, 40)}, epochs=150)
    assert divided[0] == "nano none 150" and divided[5] == "no verdict"
    assert "data.task_sizes: () -> (40, 40)" in divided[-1].replace("[40, 40]", "(40, 40)").replace("[]", "()")
    shorter = rows(tmp_path / "b", {"AP": 30.0}, epochs=12)
    assert [row[0] for row in shorter] == ["nano none 50", "nano none 150"]
    assert {row[5] for row in shorter} == {"no verdict"}


def test_a_run_of_another_network_matches_no_cell(tmp_path):
    assert rows(tmp_path / "a", {"AP": 30.0}, {"student.embed_dim": 64}) == []
    assert rows(tmp_path / "b", {"AP": 30.0}, {"teacher.embed_dim": 64}, distill="projected_tokens") == []


def test_rows_without_a_run_and_rows_without_a_config_are_marked(capsys):
    shown = replication.table(TABLE, [], all_cells=True)[1:]
    assert len(shown) == 21 and all("not run" in row and "no config" not in row for row in shown)
    assert report_main(["paper", "vkd_detection"]) == 0
    printed = " ".join(capsys.readouterr().out.split())
    for note in ("second-hand", "mid-training", "Token matching had a teacher of 50 epochs (base: 49.4)"):
        assert note in printed
