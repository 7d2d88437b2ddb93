"""Teachers of finished runs: the stream, network and named outputs for a student."""

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from ml_collections import ConfigDict

from cdl_jax.errors import UserError
from cdl_jax.methods.base import StreamInfo
from cdl_jax.methods.shared import finished_run as runs
from cdl_jax.methods.shared.finished_run import (
    FinishedRun,
    RunTeacher,
    average_outputs,
    check_same_stream,
    pick_network,
)
from tests.support.contexts import context


def stream_info(names="abcd", task_sizes=(2, 2)):
    return StreamInfo(sum(task_sizes), task_sizes, tuple(names))


def finished_run(networks=("teacher", "student"), external=(), **stream):
    run = FinishedRun(Path("runs/a"), ConfigDict({"method": "cdl"}), stream_info(**stream))
    run.__dict__["method"] = SimpleNamespace(networks=networks, external=external)  # instead of building it
    return run


@pytest.mark.parametrize(
    ("networks", "external", "name", "network"),
    [
        (("teacher", "student"), (), "", "teacher"),
        (("teacher", "student"), ("teacher",), "", "student"),
        (("teacher", "student"), ("teacher",), "teacher", "teacher"),
        (("learner_0", "learner_1"), (), "", "learner_1"),
    ],
)
def test_teacher_is_the_named_network_or_the_trained_teacher_or_the_last(networks, external, name, network):
    assert pick_network(finished_run(networks, external), name) == network


def test_a_folder_with_only_a_config_has_not_trained_a_task(tmp_path):
    (tmp_path / "config.json").write_text('{"config": {"method": "cdl"}}')
    with pytest.raises(UserError, match="has a config.json but no results.json: its run has not trained a task"):
        FinishedRun.read(tmp_path)
    (tmp_path / "config.json").write_text('{"config": {"method": "cdl", "seeds": [0, 1]}}')
    with pytest.raises(UserError, match="is of a run of several seeds"):
        FinishedRun.read(tmp_path)


def test_unknown_network_is_refused_with_a_hint():
    with pytest.raises(UserError, match="^the teacher's run runs/a has no network 'techer': did you mean 'teacher'"):
        pick_network(finished_run(), "techer")


@pytest.mark.parametrize(("checkpoint", "task_sizes"), [("same_task", (2, 2)), ("last", (2, 2)), ("last", (4,))])
def test_runs_of_the_same_stream_are_accepted(checkpoint, task_sizes):
    check_same_stream(finished_run(task_sizes=task_sizes), stream_info(), checkpoint)


@pytest.mark.parametrize(
    ("run", "student", "message"),
    [
        ({"names": "abdc"}, {}, "other classes, or in another order"),
        ({"task_sizes": (1, 1, 2)}, {}, "has 3 tasks, this one has 2"),
        ({}, {"names": ""}, "each of config.seeds has its own"),
    ],
)
def test_runs_of_another_stream_are_refused_in_one_line(run, student, message):
    with pytest.raises(UserError, match="^[^\n]*$") as error:
        check_same_stream(finished_run(**run), stream_info(**student), "same_task")
    assert message in str(error.value)


@pytest.mark.parametrize("tasks", [(0, 1), (1,)])
def test_cached_queries_of_the_student_are_no_queries_of_the_teacher(tasks):
    teacher = RunTeacher.__new__(RunTeacher)
    vars(teacher).update(tasks=tasks, info=stream_info())
    variables = {"frozen": {}, "tasks": {"head": np.arange(len(tasks))}}
    _, own = teacher.at_task(variables, context(0, 2).replace(queries={"student": np.ones((1, 4))}))
    assert own.queries == {}


def test_average_has_the_outputs_that_all_teachers_have_in_one_shape():
    first = {"logits": np.ones(3), "features": np.ones(5), "tokens": np.ones((2, 4))}
    second = {"logits": np.zeros(3), "features": np.ones(6)}
    average = average_outputs([first, second])
    assert average.keys() == {"logits"}
    np.testing.assert_array_equal(average["logits"], [0.5] * 3)
    assert average_outputs([first]) is first


def store_run(name, **config):
    (Path(name) / "checkpoints").mkdir(parents=True)
    (Path(name) / "config.json").write_text(json.dumps({"config": {"method": "cdl", **config}}))
    tasks = [{"classes": ["x", "y"], "class_ids": [5, 3], "train": 4, "test": 2}, {"classes": ["z"], "train": 2}]
    (Path(name) / "results.json").write_text(json.dumps({"stream": {"tasks": tasks}}))


def test_a_record_replaces_the_folders_of_teachers_and_of_their_teachers(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store_run("first", train={"scales": [1, 2]})
    store_run("second", cdl={"teacher_runs": ["first"]}, teacher={"weights": "x.pth", "weights_key": "ema"})
    config = {"teacher": {"weights": "second"}, "student": {"weights": "package:x"}, "cdl": {"teacher_runs": ("no",)}}
    records = json.loads(json.dumps(runs.record_teachers(config)))
    assert records.keys() == {"second"}  # a folder without results is no teacher
    shutil.rmtree("first"), shutil.rmtree("second")
    assert not runs.is_run("second")
    with runs.use_records(records):
        assert runs.is_run("second") and not runs.is_run("first")
        second = FinishedRun.read("second")
    assert second.info == StreamInfo(3, (2, 1), ("x", "y", "z"), 6, (5, 3)) and second.config.method == "cdl"
    assert second.config.teacher.to_dict() == {"weights": "random", "weights_key": ""}  # checkpoints have the weights
    with runs.use_records(second.records):
        assert FinishedRun.read("first").config.train.scales == (1, 2)
    with pytest.raises(UserError, match="no run with results in the teacher's folder second"):
        FinishedRun.read("second")
    with pytest.raises(UserError, match="has finished 0 of 2 tasks"):
        runs.pick_tasks(second, "last")
