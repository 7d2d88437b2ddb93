"""Images of other data sets: classes by name, file names, and the printed lines."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from cdl_jax.data.stream import Split
from cdl_jax.errors import UserError
from cdl_jax.methods.base import StreamInfo
from cdl_jax.run import elsewhere

RUN = SimpleNamespace(
    class_names=("cat", "dog", "owl"), method=SimpleNamespace(streams=()), is_detection=False, is_generation=False
)


@pytest.fixture
def folder(tmp_path):
    for name, count in (("dog", 2), ("emu", 1), ("owl", 3)):
        (tmp_path / name).mkdir()
        for number in range(count):
            Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name / f"{number}.png")
    return tmp_path


def test_classes_are_found_by_name_and_others_left_out(folder):
    data = elsewhere.find(RUN, str(folder), 3)
    assert data.labels.tolist() == [1, 1, 2, 2, 2] and data.left_out == ("emu",)
    assert [path.parent.name for path in map(elsewhere.Path, data.images)] == ["dog"] * 2 + ["owl"] * 3
    early = elsewhere.find(RUN, str(folder), 2)  # the owl is not learned yet
    assert early.labels.tolist() == [1, 1] and early.left_out == ("emu", "owl")


def test_a_test_set_in_the_folder_is_preferred(folder):
    (folder / "all" / "train").mkdir(parents=True)
    (folder / "all" / "test").mkdir()
    (folder / "dog").rename(folder / "all" / "train" / "dog")
    (folder / "owl").rename(folder / "all" / "test" / "owl")
    (folder / "all" / "train" / "owl").mkdir()
    Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(folder / "all" / "train" / "owl" / "0.png")
    assert elsewhere.find(RUN, str(folder / "all"), 3).labels.tolist() == [2, 2, 2]


def test_classes_of_one_name_are_refused_elsewhere_and_kept_in_the_own_data(folder, monkeypatch):
    twins = SimpleNamespace(**{**vars(RUN), "class_names": ("dog", "cat", "dog")})
    with pytest.raises(UserError, match="two are called 'dog': rename one"):
        elsewhere.find(twins, str(folder), 3)
    split = Split(np.array([0, 1, 2, 2], np.int32), np.zeros((4, 2, 2, 3), np.uint8))
    data = SimpleNamespace(name="twins", class_names=("dog", "cat", "dog"), train=split, test=split)
    monkeypatch.setattr(elsewhere.stream, "load", lambda *_: data)
    twins.config, twins.seed = SimpleNamespace(data=None), 0
    assert elsewhere.find(twins, "test", 3).labels.tolist() == [0, 1, 2, 2]
    found = elsewhere.find(twins, "train", 2)
    assert found.labels.tolist() == [0, 1] and found.left_out == ("dog",)


def test_data_without_a_known_class_is_refused(folder):
    with pytest.raises(UserError, match="has no images of the classes that the run has learned: it has dog, emu, owl"):
        elsewhere.find(RUN, str(folder), 1)
    with pytest.raises(UserError, match="no such|unknown|did you mean"):
        elsewhere.find(RUN, "cifar1000", 3)


def run_of(info, logits, streams=()):
    """Returns a run of one network with given logits of each image."""
    classifier = SimpleNamespace(logits=lambda images: np.array(logits)[: len(images)])
    method = SimpleNamespace(streams=streams, stream_of={"student": 0} if streams else {})
    config = SimpleNamespace(eval=SimpleNamespace(batch_size=8))
    return SimpleNamespace(
        class_names=("cat", "dog", "owl"), method=method, info=info, is_detection=False, is_generation=False,
        networks=("student",), seed=0, config=config, network=lambda *_: SimpleNamespace(predictor=classifier),
    )  # fmt: skip


@pytest.mark.parametrize("sizes", [(3, 3), (2, 3)])  # domain-incremental, blurry
def test_a_run_whose_tasks_share_classes_has_one_accuracy(folder, sizes):
    logits = [[0, 9, 0], [9, 0, 0], [0, 0, 9], [0, 0, 9], [0, 9, 0]]  # of dog, dog, owl, owl, owl: three are correct
    run = run_of(StreamInfo(3, sizes, first_labels=(0, 0)), logits)
    measured = elsewhere.evaluate(run, str(folder), 1)["networks"]["student"]
    assert measured["images"] == [5] and measured["accuracy"] == measured["task_incremental"] == [60.0]
    assert measured["class_accuracy"] == [None, 50.0, pytest.approx(200 / 3)] and len(measured["confusion"]) == 3


def test_a_network_that_has_learned_none_of_the_classes_is_refused(folder):
    run = run_of(StreamInfo(3, (1, 2)), np.zeros((5, 3)), streams=((0, 1, 2),))
    with pytest.raises(UserError, match="no image of a class that student has learned"):
        elsewhere.evaluate(run, str(folder), 0)


def test_severities_and_corruptions_are_checked_before_work():
    with pytest.raises(UserError, match="needs --corruptions"):
        elsewhere.evaluate(RUN, "test", 0, (), (1,))
    with pytest.raises(UserError, match=r"must lie in \[1, 5\]"):
        elsewhere.evaluate(RUN, "test", 0, ("fog",), (0,))
    with pytest.raises(UserError, match="evaluate classifiers"):
        elsewhere.evaluate(SimpleNamespace(is_detection=True, is_generation=False), "test")


def test_every_evaluation_has_its_own_file():
    names = {
        elsewhere.file_name(on, task, is_corrupted)
        for on in ("test", "train", "/data/night", "/data-night") for task in (0, 1) for is_corrupted in (False, True)
    }  # fmt: skip
    assert len(names) == 16 and "eval/test-task1-corrupted.json" in names
    assert all(name.startswith("eval/data-night-") for name in names if "night" in name)


def test_the_summary_states_both_accuracies_and_what_is_left_out():
    measured = {"last_image_weighted": 40.0, "task_incremental_image_weighted": 80.0, "accuracy": [50.0, None]}
    content = {
        "task": 1, "data": {"name": "night", "images": 5, "left_out": ["emu"]}, "networks": {"student": measured},
        "corruptions": {"fog": {"1": {"student": measured}, "5": {"student": {"last_image_weighted": 20.0}}}},
    }  # fmt: skip
    assert elsewhere.summary(content).splitlines() == [
        "night: 5 images after task 1",
        "left out, not learned: emu",
        "student: 40.00 % of images, with the task given 80.00 %; by task: 50.00 -",
        "fog: student 30.00",
    ]


def test_later_corruptions_are_added_to_an_equal_evaluation(tmp_path):
    path = tmp_path / "test-task1-corrupted.json"
    first = {"seed": 0, "task": 1, "networks": {}, "corruptions": {"fog": {"1": 5.0, "5": 1.0}}}
    assert elsewhere.merge(path, first) == first
    path.write_text(json.dumps(first))
    second = {**first, "corruptions": {"snow": {"3": 2.0}, "fog": {"3": 4.0, "5": 1.5}}}
    merged = {"fog": {"1": 5.0, "3": 4.0, "5": 1.5}, "snow": {"3": 2.0}}
    assert elsewhere.merge(path, second) == {**first, "corruptions": merged}
    path.write_text(
        json.dumps({key: value for key, value in first.items() if key != "seed"} | {"networks": {"x": 5.0}})
    )
    rounded = {**second, "networks": {"x": 5.00001}}  # of another device; an earlier version wrote no seed
    assert elsewhere.merge(path, rounded) == {**rounded, "corruptions": merged}
    path.write_text(json.dumps(first))
    for changed in ({**second, "seed": 1}, {**second, "networks": {"student": 1}}):
        assert elsewhere.merge(path, changed) == changed
