"""Runs are read, grouped by their settings and labeled."""

import json

import pytest

from cdl_jax.errors import UserError
from cdl_jax.report import tables
from cdl_jax.report.__main__ import main as report_main
from cdl_jax.report.groups import folder_names, labels, read_groups
from tests.support.stored_runs import CONFIG, config_with_seed, results, store


def table_of(runs):
    return tables.table(read_groups(runs))


def test_resumable_keys_and_seeds_do_not_separate_runs(tmp_path):
    other = {**config_with_seed(1), "data": {"path": "b", "class_order_seed": 1}, "log": {"every_steps": 3}}
    table = table_of(
        [store(tmp_path / "a", config_with_seed(0), student=50.0), store(tmp_path / "b", other, student=52.0)]
    )
    assert table[1][:4] == ["all", "student", "2", "51.00 ± 1.41"]
    assert len(table) == 2
    own = {**other, "data": {"path": "b", "class_order_seed": -1}}  # the same order by another name
    with pytest.raises(UserError, match="are runs of one config and seed"):
        table_of([tmp_path / "b", store(tmp_path / "c", own, student=52.0)])


def test_a_label_names_a_component_instead_of_its_options(tmp_path):
    coda = {**config_with_seed(0), "learner": {"name": "coda", "length": 8}}
    runs = [store(tmp_path / "a", config_with_seed(0), student=50.0), store(tmp_path / "b", coda, student=51.0)]
    assert [row[0] for row in table_of(runs)[1:]] == ["learner.name=l2p", "learner.name=coda"]


def test_labels_are_distinct_for_components_of_the_same_name(tmp_path):
    configs = [config_with_seed(0), config_with_seed(0, pool=10), {**config_with_seed(0), "learner": {"name": "coda"}}]
    runs = [store(tmp_path / str(i), config, student=50.0) for i, config in enumerate(configs)]
    labels = [row[0] for row in table_of(runs)[1:]]
    assert len(set(labels)) == 3, labels
    assert labels == ["learner.name=l2p, learner.pool=30", "learner.name=l2p, learner.pool=10", "learner.name=coda"]


def test_two_runs_of_one_config_and_seed_are_refused(tmp_path):
    runs = [store(tmp_path / name, config_with_seed(0), student=50.0) for name in "ab"]
    with pytest.raises(UserError, match="b and .*a are runs of one config and seed"):
        table_of(runs)


def test_a_folder_without_results_is_refused(tmp_path, capsys):
    for name, files in {
        "empty": {},
        "torn": {"results.json": "{", "config.json": "{}"},
        "half": {"results.json": "{}"},
        "bare": {"results.json": "{}", "config.json": json.dumps({"config": CONFIG})},
        "list": {"results.json": "[1]", "config.json": json.dumps({"config": CONFIG})},
        "keyless": {"results.json": json.dumps(results()), "config.json": "{}"},
        "seedless": {"results.json": json.dumps(results()), "config.json": '{"config": {"a": 1}}'},
    }.items():
        (tmp_path / name).mkdir()
        for file, text in files.items():
            (tmp_path / name / file).write_text(text)
        message = f"{name} holds no results of a run|{name}/config.json is damaged"
        with pytest.raises(UserError, match=message):
            table_of([tmp_path / name])
    assert report_main([str(tmp_path / "empty")]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_run_without_later_options_of_the_stream_joins_its_group(tmp_path):
    former = {"name": "digits", "num_tasks": 2, "class_order_seed": 0}
    today = {**former, "kind": "class", "online": False, "append": [], "class_order_seed": 1}
    runs = [
        store(tmp_path / "a", {**config_with_seed(0), "data": former}, student=50.0),
        store(tmp_path / "b", {**config_with_seed(1), "data": today}, student=52.0),
        store(tmp_path / "c", {**config_with_seed(2), "data": {**today, "online": True}}, student=53.0),
    ]
    assert [row[0::2][:2] for row in table_of(runs)[1:]] == [["data.online=False", "2"], ["data.online=True", "1"]]


def test_the_name_of_a_setting_is_in_front_of_every_label(tmp_path):
    reading = "vkd (our reading: literal)"
    for name, seed in (("a", 0), ("b", 1)):
        store(tmp_path / name, config_with_seed(seed), student=50.0)
        path = tmp_path / name / "results.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), "setting": reading}))
    groups = read_groups([tmp_path / "a", tmp_path / "b"])
    assert labels(groups) == [f"{reading}, all"] and folder_names(groups) == [f"{reading}, a"]
