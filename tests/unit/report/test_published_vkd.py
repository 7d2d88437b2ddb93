"""VkD's published results: numbers, ablation settings, and comparison with runs."""

import json

import jax
import pytest

from cdl_jax import config as configs
from cdl_jax import published
from cdl_jax.errors import UserError
from cdl_jax.evaluation.metrics import named_metrics
from cdl_jax.methods import vkd as method
from cdl_jax.methods.base import StreamInfo
from cdl_jax.published import vkd
from cdl_jax.report import replication
from cdl_jax.report.groups import read_groups
from configs.vkd import get_config

TABLE = published.table("vkd")
SETTINGS = "reference=false"


def numbers(name, *key):
    (cell,) = (cell for cell in published.table(name).cells if tuple(cell.choices.values())[: len(key)] == key)
    return tuple(cell.values.values())


def flat_config(**choices):
    return configs.flatten(vkd.build(**choices))


def differing_settings(a, b):
    return {key: (a.get(key), b.get(key)) for key in {*a, *b} if a.get(key) != b.get(key)}


def rows(folder, best, changes=(), measures=(), **choices):
    """Returns the table's rows for a run whose best epoch has these values."""
    config = vkd.build(**choices)
    config.update_from_flattened_dict({"teacher.weights": "t.pth", **dict(changes)})
    networks = {name: {"metrics": named_metrics([[50.0]], [1])} for name in ("teacher", "student")}
    epoch = {"accuracy": {"teacher": [82.9], "student": [best]}, "extra_metrics": dict(measures)}
    folder.mkdir()
    results = {"status": "finished", "networks": networks, "headline": ["student"], "best": {"0": epoch}}
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "config.json").write_text(json.dumps({"config": config.to_dict()}))
    return replication.table(TABLE, replication.matches(read_groups([folder]), TABLE))[1:]


def test_stored_numbers_equal_the_papers():
    assert [len(published.table(name).cells) for name in ("vkd", "vkd_others", "vkd_generation")] == [6, 18, 20]
    assert numbers("vkd", "paper", "vkd", "deit_ti_conv") == (78.3, 94.1)
    assert numbers("vkd", "repository", "vkd", "deit_s_conv") == (82.9, 96.2)
    assert [numbers("vkd", "paper", row)[0] for row in ("orthogonal", "unconstrained")] == [77.9, 76.3]
    assert numbers("vkd_others", "DeiT", "DeiT-S") == (81.2,)
    assert numbers("vkd_generation", "vkd, whitened") == (13.71,)
    assert numbers("vkd_generation", "BigGAN + DiffAugment", "cifar100", "20 %") == (22.14,)


def test_rows_of_the_ablation_differ_only_in_the_omitted_parts():
    complete = flat_config()
    assert differing_settings(complete, flat_config(row="orthogonal")) == {"distill.teacher_norm": ("layer", "none")}
    assert differing_settings(complete, flat_config(row="unconstrained")) == {
        "distill.teacher_norm": ("layer", "none"), "distill.projector": ("", "linear"),
    }  # fmt: skip
    assert differing_settings(complete, flat_config(row="kd")) == {"distill.feature_weight": (1.0, 0.0)}
    assert differing_settings(complete, flat_config(row="none")).keys() == {
        "distill.feature_weight",
        "distill.logit_weight",
    }
    assert differing_settings(complete, flat_config(reference=True)) == {"distill.reference_exact": (False, True)}
    assert [complete[f"train.{key}"] for key in ("epochs", "batch_size", "last_batch")] == [300, 512, "drop"]
    assert (complete["optim.learning_rate"], complete["optim.end_learning_rate"], complete["optim.weight_decay"]) == (
        5e-4,
        5e-6,
        0.05,
    )


def test_the_config_file_has_every_cell():
    for cell in TABLE.cells:
        text = ",".join(f"{key}={value}" for key, value in cell.choices.items())
        assert configs.flatten(get_config(text)) == flat_config(**cell.choices)


def test_a_cell_builds_a_projection_of_the_right_shape():
    built = method.build(vkd.build(row="unconstrained", network="deit_s_conv"), StreamInfo(1000, (1000,)))
    shapes = jax.eval_shape(built.scheme.init, jax.random.key(0))
    assert [leaf.shape for leaf in jax.tree.leaves(shapes)] == [(384, 3024)]


def test_a_run_is_compared_with_paper_and_repository(tmp_path):
    table_rows = rows(tmp_path / "a", 78.9, measures={"student/top5": 94.5, "loss": 1.0})
    assert [row[0] for row in table_rows] == ["paper vkd deit_ti_conv", "repository vkd deit_ti_conv"]
    assert table_rows[0][1:9] == [
        SETTINGS, "1", "78.30", "78.90", "too few seeds (+0.60)", "94.10", "94.50", "too few seeds (+0.40)",
    ]  # fmt: skip
    assert table_rows[1][5] == "too few seeds (-0.30)"


def test_runs_match_the_row_of_the_ablation_with_their_settings(tmp_path):
    for row, paper in (("orthogonal", "77.90"), ("unconstrained", "76.30")):
        (table_rows,) = rows(tmp_path / row, 77.0, row=row)
        assert table_rows[:4] == [f"paper {row} deit_ti_conv", SETTINGS, "1", paper]
        assert table_rows[6:9] == ["-", "-", "-"]  # top-5 is neither published nor measured
    control = rows(tmp_path / "kd", 75.0, row="kd")
    assert [row[0].split()[:2] for row in control] == [["paper", "vkd"], ["repository", "vkd"]]
    assert {row[-1] for row in control} == {f"other settings than {SETTINGS}: distill.feature_weight: 1.0 -> 0.0"}


def test_a_run_of_another_network_matches_no_cell(tmp_path):
    assert rows(tmp_path / "a", 78.0, network="deit_ti") == []
    assert rows(tmp_path / "b", 78.0, teacher="resnet50") == []


@pytest.mark.parametrize("name", ["vkd_others", "vkd_detection_others", "vkd_generation"])
def test_tables_without_settings_show_no_config(name):
    table = published.table(name)
    shown = replication.table(table, replication.matches([], table), all_cells=True)[1:]
    assert len(shown) == len(table.cells) and all("no config" in row and "not run" not in row for row in shown)


def test_a_wrong_row_is_a_one_line_error():
    with pytest.raises(UserError, match="row='orthogonl': did you mean 'orthogonal'"):
        get_config("row=orthogonl")
