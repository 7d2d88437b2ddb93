"""Stored files of earlier versions open under today's names.

Files of later versions are refused.
"""

import dataclasses
import json

import pytest

from cdl_jax import config as configs
from cdl_jax import plugins, schema
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


def config_of_schema_1(key, value):
    section, _, name = key.rpartition(".")
    return {"config": {section: {name: value}} if section else {key: value}, "content": {key: ["a digest"]}}


@pytest.mark.parametrize(("old", "new"), sorted(schema.RENAMED_OPTIONS.items()))
def test_a_renamed_option_keeps_its_value_and_the_fingerprint_of_its_files(old, new):
    upgraded = schema.upgrade_config(config_of_schema_1(old, "own" if old == "cdl.query" else 5))
    assert configs.flatten(upgraded["config"])[new] == ("teacher" if old == "cdl.query" else 5)
    assert old not in configs.flatten(upgraded["config"]) and upgraded["content"] == {new: ["a digest"]}
    assert schema.upgrade_config(upgraded) == upgraded


def test_renamed_options_exist_and_their_former_names_do_not():
    dkt = {f"dkt.{key}" for key in configs.default("dkt", data="cifar100").dkt}
    eeil = set(configs.flatten(configs.default("eeil", data="cifar100")))
    cdl = {
        key
        for learner in ("l2p", "dualprompt")
        for key in configs.flatten(configs.default("cdl", data="cifar100", learner=learner))
    }
    known = dkt | eeil | cdl
    assert set(schema.RENAMED_OPTIONS.values()) <= known and not set(schema.RENAMED_OPTIONS) & known


def test_a_former_name_is_refused_with_the_name_of_today():
    config = configs.default("cdl", data="cifar100")
    with config.unlocked():
        config.learner.pull = "mean"
    with pytest.raises(UserError, match="unknown key config.learner.pull of .*: it is now 'learner.key_loss'"):
        configs.check_keys(config)


def test_a_former_option_on_the_command_line_gets_its_name_and_its_values_of_today():
    assert plugins.did_you_mean("cdl.query", ["cdl.teacher_query", "seed"]) == (
        "it is now 'cdl.teacher_query'; its value 'own' is now 'teacher'"
    )
