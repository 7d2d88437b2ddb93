"""The record of a run, and results.json made from it."""

import dataclasses
import json
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from cdl_jax.data.stream import Split, Task
from cdl_jax.run import results
from cdl_jax.run.results import Record
from tests.support.methods import FixedMethod

RECORD = Record(
    step=40, task=2, accuracy={"student": [[80.0], [70.0, 1 / 3]]}, pretask_accuracy={"student": [50.0, 20.0]},
    initial_accuracy={"student": [10.0, 5.0]}, selection={"student": {"layer_0": [[3, 1], [2, 2]]}},
    seconds={"student": 1.5}, throughput={"student": (300, 2.0), "teacher": (0, 0.0)},
    flops={"student": 1e6, "teacher": None},
)  # fmt: skip


def test_a_record_survives_json():
    stored = json.loads(json.dumps(dataclasses.asdict(RECORD)))
    again = Record(**stored)
    assert json.loads(json.dumps(dataclasses.asdict(again))) == stored
    assert again.accuracy == RECORD.accuracy and again.accuracy["student"][1][1] == 1 / 3
    images, seconds = again.throughput["student"]
    assert (again.step, again.task, images, seconds) == (40, 2, 300, 2.0)
    assert Record(**json.loads(json.dumps(dataclasses.asdict(Record())))) == Record()


def test_records_share_nothing():
    Record().accuracy["student"] = [[1.0]]
    assert Record().accuracy == {}


def test_a_task_has_begun_after_its_first_step_or_phase():
    assert not Record(step=40, task=2).within_task()
    assert all(Record(**place).within_task() for place in ({"phase": 1}, {"epoch": 1}, {"step_in_epoch": 1}))


def test_seconds_add_up():
    record = Record()
    for seconds in (1.5, 2.0):
        record.add_seconds("student", seconds)
    record.add_seconds("evaluation", 0.25)
    assert record.seconds == {"student": 3.5, "evaluation": 0.25}


def test_peak_memory_is_that_of_this_process_in_bytes(monkeypatch):
    block = np.ones(25_000_000)  # 200 MB, all touched
    assert 200e6 < block.nbytes + 1 <= results.peak_memory() < 1e12
    device = SimpleNamespace(memory_stats=lambda: {"peak_bytes_in_use": 123})
    monkeypatch.setattr(jax, "local_devices", lambda: [device])
    assert results.peak_memory() == 123


def make_experiment(limit_mb=1):
    tasks = (Task(0, (4, 2), 0, np.arange(6), np.arange(2)), Task(1, (0,), 2, np.arange(3), np.arange(6)))
    tree = {"backbone": {"kernel": np.zeros((3, 4))}, "head": np.zeros(5)}
    test = Split(np.zeros(8, np.int32), images=np.zeros((8, 4, 6, 3), np.uint8))
    stream = SimpleNamespace(
        name="toy", problem="classification", tasks=tasks, num_tasks=2, class_names=("e", "c", "a"), test=test
    )
    return SimpleNamespace(
        stream=stream,
        streams=(stream,),
        config=SimpleNamespace(method="cdl", device_data_limit_mb=limit_mb),
        seeds=(3,),
        method=FixedMethod(networks=("teacher", "student"), bookkeeping=frozenset({"exchange", "published", "cache"})),
        mesh=SimpleNamespace(size=1),
        metric="accuracy",
        problem=SimpleNamespace(lower_is_better=False),
        abstract_variables=lambda: (
            {"student": {"head": tree["head"]}, "distill": {}, "exchange": tree, "published": tree, "cache": tree},
            {"student": {"backbone": tree["backbone"]}},
        ),
    )


def test_results_follow_from_the_record():
    content = json.loads(json.dumps(results.collect(make_experiment(), RECORD, 3)))
    assert (content["name"], content["status"], content["seed"]) == ("toy, cdl", "finished", 3)
    assert list(content["networks"]) == ["student"]  # a network without a row is left out
    metrics = content["networks"]["student"]["metrics"]
    assert metrics["last"] == pytest.approx((70 + 1 / 3) / 2)
    assert metrics["last_image_weighted"] == pytest.approx((2 * 70 + 6 / 3) / 8)
    assert metrics["forward_transfer"] == 15.0
    assert content["stream"]["tasks"] == [
        {"first": 0, "domain": "", "classes": ["e", "c"], "class_ids": [4, 2], "train": 6, "test": 2},
        {"first": 2, "domain": "", "classes": ["a"], "class_ids": [0], "train": 3, "test": 6},
    ]
    assert content["stream"]["device_size"] == [4, 6]
    assert results.collect(make_experiment(limit_mb=0), RECORD, 3)["stream"]["device_size"] is None
    assert content["cost"]["parameters"] == {"student": {"trainable": 5, "frozen": 12}}
    assert content["cost"]["images_per_second"] == {"student": 150.0}
    assert content["cost"]["device"] == "1 x cpu"
    assert results.collect(make_experiment(), Record(task=1), 3)["status"] == "running"
    assert results.collect(make_experiment(), Record(task=1), 3)["networks"] == {}


def test_results_have_accuracies_by_class_of_all_tasks_or_of_none():
    network = "student"
    measured = {"task_incremental": {network: [[90.0], [80.0, 60.0]]}, "confusion": {network: [{"0": 2}]}}
    measured["class_accuracy"] = {network: [[100.0, 60.0], [80.0, 60.0, 1 / 3]]}
    content = results.collect(make_experiment(), dataclasses.replace(RECORD, **measured), 3)["networks"][network]
    assert content["task_incremental_matrix"] == measured["task_incremental"][network]
    assert content["class_accuracy"] == measured["class_accuracy"][network]
    assert content["confusion"] == [{"0": 2}]
    assert content["metrics"]["task_incremental_last"] == 70 and content["metrics"]["task_incremental_learning"] == 75
    # An earlier version trained the first task, and this one resumed the run.
    resumed = dataclasses.replace(RECORD, **{name: {network: rows[network][1:]} for name, rows in measured.items()})
    content = results.collect(make_experiment(), resumed, 3)["networks"][network]
    assert content["task_incremental_matrix"] is content["class_accuracy"] is None
    assert content["metrics"]["task_incremental_last"] is None


def test_learners_have_means_of_each_head_and_stream_accuracy_by_task():
    rows = {"a": [[80.0], [70.0, 40.0]], "a_st": [[50.0], [60.0, 20.0]], "b": [[60.0], [50.0, 50.0]]}
    rows["b_st"] = [[10.0], [20.0, 20.0]]
    several = make_experiment()
    several.method = FixedMethod(
        networks=(*rows, "ensemble"),
        mean_groups={"mean": ("a", "b"), "mean_st": ("a_st", "b_st")},
        stream_of={name: 0 for name in rows},
    )
    several.plan = SimpleNamespace(test=((np.arange(2), np.arange(6)),))
    stream = {"stream": {"a": [[80.0, 8.0], [70.0, 40.0]]}}
    content = results.collect(several, Record(task=2, accuracy=rows, calibration=stream), 3)
    assert {head: mean["metrics"]["last"] for head, mean in content["mean_over_learners"].items()} == {
        "mean": 52.5,
        "mean_st": 30,
    }
    assert content["networks"]["a"]["per_task"] == {
        "forgetting_by_task": [10.0], "forgetting_after_each": [0.0, 10.0],
        "stream_accuracy": [(2 * 80 + 6 * 8) / 8, (2 * 70 + 6 * 40) / 8], "stream_accuracy_by_task": [44.0, 55.0],
    }  # fmt: skip
    assert content["networks"]["a"]["metrics"]["stream_accuracy"] == 47.5
    assert content["networks"]["b"]["metrics"]["stream_accuracy"] is None
    assert content["mean_over_learners"]["mean"]["metrics"]["stream_accuracy"] is None
    assert results.collect(make_experiment(), RECORD, 3)["mean_over_learners"] == {}


def test_parameters_are_of_one_seed_and_the_device_names_the_number_of_seeds():
    several = make_experiment()
    several.seeds, several.streams = (3, 0, 7), several.streams * 3
    mutable = {"student": {"head": np.zeros((3, 5))}, "distill": {}}
    frozen = several.abstract_variables()[1]
    several.abstract_variables = lambda: (mutable, frozen)
    cost = results.collect(several, RECORD, 0)["cost"]
    assert cost["parameters"] == {"student": {"trainable": 5, "frozen": 12}}
    assert cost["device"] == "1 x cpu, shared by 3 seeds"


def test_records_of_several_seeds_share_only_the_position():
    other = Record(
        **{**dataclasses.asdict(RECORD), "accuracy": {"student": [[1.0], [2.0, 3.0]]}, "extra_metrics": [{"a": 1.0}]}
    )
    saved = json.loads(json.dumps(results.to_json([RECORD, other])))
    assert saved["step"] == 40 and [own["accuracy"]["student"][0] for own in saved["seeds"]] == [[80.0], [1.0]]
    first, second = results.from_json(saved)
    assert (first.accuracy, second.accuracy, second.extra_metrics) == (RECORD.accuracy, other.accuracy, [{"a": 1.0}])
    second.accuracy["student"].append([0.0])
    second.add_seconds("student", 1.0)
    assert len(first.accuracy["student"]) == 2 and first.seconds == {"student": 1.5}
