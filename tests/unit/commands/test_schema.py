"""Stored files of earlier versions open under today's names, and those of later versions are refused."""

import dataclasses
import json

import pytest

from cdl_jax import schema
from cdl_jax.errors import UserError
from cdl_jax.run import results
from cdl_jax.run.results import Record

RESULTS = {
    "status": "finished",
    "means": {"mean": {"metrics": {"last": 1.0}}},
    "measures": [{"loss": 1.0}],
    "best": {"0": {"value": 2.0, "measures": {"loss": 3.0}}},
    "networks": {"student": {"before": [1.0], "at_start": [0.5], "by_task": {}, "metrics": {"before": 4.0}}},
}


def test_results_of_schema_1_have_todays_names():
    upgraded = schema.upgrade("results", RESULTS)
    assert upgraded == {
        "schema": 2,
        "status": "finished",
        "mean_over_learners": {"mean": {"metrics": {"last": 1.0}}},
        "extra_metrics": [{"loss": 1.0}],
        "best": {"0": {"value": 2.0, "extra_metrics": {"loss": 3.0}}},
        "networks": {
            "student": {
                "pretask_accuracy": [1.0],
                "initial_accuracy": [0.5],
                "per_task": {},
                "metrics": {"before": 4.0},
            }
        },
    }
    assert schema.upgrade("results", upgraded) == upgraded and "means" in RESULTS


def test_keys_keep_their_order():
    assert list(schema.upgrade("analysis", {"alignment": 1, "tasks": 2, "places": 3})) == [
        "cka", "tasks", "tsne", "schema"
    ]  # fmt: skip


def test_a_record_of_schema_1_is_read_and_saved_with_todays_names():
    saved = {
        "step": 7, "lines": 3, "task": 1, "round": 0, "phase": 0, "epoch": 0, "step_in_epoch": 0, "watched": [50.0],
        "seconds": {"student": 1.0}, "timed": {"student": [8, 2.0]}, "flops": {},
        "seeds": [{
            "accuracy": {"student": [[60.0]]}, "before": {"student": [9.0]}, "at_start": {"student": [8.0]},
            "measures": [{"loss": 1.0}], "best": {"0": {"value": 1.0, "measures": {"loss": 2.0}}}, "selection": {},
            "quality": {"ece": {"student": [[0.1]]}}, "nonfinite": [],
        }],
    }  # fmt: skip
    expected = Record(
        step=7,
        num_log_lines=3,
        task=1,
        stopping_history=[50.0],
        accuracy={"student": [[60.0]]},
        pretask_accuracy={"student": [9.0]},
        initial_accuracy={"student": [8.0]},
        extra_metrics=[{"loss": 1.0}],
        best={"0": {"value": 1.0, "extra_metrics": {"loss": 2.0}}},
        calibration={"ece": {"student": [[0.1]]}},
        seconds={"student": 1.0},
        throughput={"student": [8, 2.0]},
    )
    (record,) = results.from_json(saved)
    assert dataclasses.asdict(record) == dataclasses.asdict(expected)
    again = results.to_json([record])
    assert again["schema"] == 2 and results.from_json(json.loads(json.dumps(again))) == [expected]


@pytest.mark.parametrize("number", [3, 0, "2", None])
def test_a_file_of_another_version_is_refused_in_one_line(tmp_path, number):
    (tmp_path / "results.json").write_text(json.dumps({**RESULTS, "schema": number}))
    with pytest.raises(UserError) as error:
        results.read(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/results.json: schema {number!r} is of another version of cdl_jax, this one reads up to 2: "
        "update cdl_jax, or choose another --workdir"
    )


@pytest.mark.parametrize("kind", sorted(schema.RENAMED_KEYS))
def test_no_name_is_both_former_and_present(kind):
    table = schema.RENAMED_KEYS[kind]
    renamed = {path.rpartition(".")[0] + "." + new for path, new in table.items()}
    assert not renamed & {path.rpartition(".")[0] + "." + path.rpartition(".")[2] for path in table}


def test_a_removed_option_stays_where_it_had_an_effect():
    content = {"config": {"cdl": {"same_batches": False, "kept_queries_mb": 7, "schedule": "interleaved"}, "seed": 1}}
    assert schema.upgrade_config(content) == {
        "schema": 2,
        "config": {"cdl": {"schedule": "interleaved"}, "seed": 1},
    }
    content["config"]["cdl"]["same_batches"] = True
    assert schema.upgrade_config(content)["config"]["cdl"] == {"same_batches": True, "schedule": "interleaved"}
    assert content["config"]["cdl"]["kept_queries_mb"] == 7
