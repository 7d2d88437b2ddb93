"""Streams of detection tasks: images and objects of each task, in COCO's layout."""

import dataclasses
import json

import numpy as np
import pytest

from cdl_jax.data import stream
from cdl_jax.data.detection import coco_files, streams
from cdl_jax.data.detection.streams import DetectionData
from cdl_jax.data.sources import coco
from cdl_jax.errors import UserError
from cdl_jax.options import defaults
from tests.support import coco_sets


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("coco")
    records = coco_sets.content()
    records["annotations"].append({"id": 40, "image_id": 7, "category_id": 7, "bbox": [1, 1, 9, 9]})
    for part in ("train2017", "val2017"):
        coco_sets.write(root, part, records)
    return root


def load(root, **options):
    return stream.load({"name": "coco", "path": str(root), **options})


def test_an_image_belongs_to_each_task_of_which_it_has_an_object(root):
    s = load(root, num_tasks=2, task_sizes=(2, 1), class_order="0,2,1")  # of the ids 3, 7, 90
    first, second = s.tasks
    assert (first.classes, second.classes, s.class_order) == ((3, 90), (7,), (3, 90, 7))
    assert s.class_names == ("cat", "ring", "hat") and (second.first, second.end) == (2, 3)
    ids = s.train.image_ids
    assert ids[first.train].tolist() == [4, 9]  # image 4 by its object of 90: its object of 3 is a crowd
    assert ids[second.train].tolist() == [4, 7] == s.test.image_ids[second.test].tolist()
    of_first, of_second = s.train_sets()
    assert [of_first.targets(row).labels.tolist() for row in range(3)] == [[90], [], [3]]
    assert [of_second.targets(row).labels.tolist() for row in range(3)] == [[7], [7], []]
    assert of_first.files == of_second.files == s.train.files
    assert of_first.num_outputs == of_second.num_outputs == 91


def test_one_task_has_all_images_and_objects(root):
    s = load(root, num_tasks=1)
    assert s.tasks[0].train.tolist() == s.tasks[0].test.tolist() == [0, 1, 2]
    assert s.train_sets() == (s.train,)


def test_categories_that_the_class_order_omits_are_not_annotated(root):
    s = load(root, num_tasks=1, class_order="2")
    (data,) = s.train_sets()
    assert s.num_classes == 1 and data.objects.labels.tolist() == [90]


def test_divisions_of_the_field():
    data = coco.placeholder(defaults(coco.OPTIONS))
    s = data.into_stream(num_tasks=2, task_sizes=(40, 40))
    first, second = (task.classes for task in s.tasks)
    assert (len(first), first[-1], second[0], second[-1]) == (40, 44, 46, 90)
    assert len(s.train) == 118_287 and len(s.test) == 5_000 and s.train.max_objects == 99


def test_the_placeholder_of_trainval_has_the_size_of_voc_2007():
    data = coco.placeholder(defaults(coco.OPTIONS, train_part="trainval"))
    assert (data.name, len(data.train), len(data.test)) == ("voc", 5011, 4952)
    assert list(data.train.categories) == list(range(1, 21)) and set(data.test.objects.labels) == set(range(1, 21))
    assert set(map(tuple, data.train.sizes)) == {(375, 500)}
    with_masks = coco.placeholder(defaults(coco.OPTIONS, segmentations=True))
    assert len(with_masks.train.objects.masks) == len(with_masks.train.objects)
    assert with_masks.test.objects.masks is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_tasks": 2}, "data.num_tasks=2 does not divide 3 classes"),
        ({"num_tasks": 1, "max_train_per_class": 5}, "data.max_train_per_class selects images by their one label"),
        ({"num_tasks": 1, "max_train": 5}, "data.max_train selects images by their one label"),
        ({"num_tasks": 1, "validation_fraction": 0.5}, "data.validation_fraction selects images"),
        ({"num_tasks": 1, "test_part": "train2017"}, "both 'train2017': use two parts"),
        ({"num_tasks": 1, "train_part": "no"}, "instances_no.json: no such file"),
        ({"num_tasks": 1, "path": ""}, "set data.path to the folder with annotations/"),
    ],
)
def test_mistakes_are_one_line(root, options, message, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CDL_DATA", str(tmp_path))
    with pytest.raises(UserError, match=message) as error:
        load(options.pop("path", root), **options)
    assert "\n" not in str(error.value)


def test_a_file_instead_of_a_folder_is_refused(root):
    with pytest.raises(UserError, match="is a file: set it to the folder with annotations/"):
        load(root / "annotations" / "instances_val2017.json", num_tasks=1)


def test_a_task_without_objects_is_refused(root):
    data = coco.load(defaults(coco.OPTIONS, path=str(root)))
    without = data.test.select(np.arange(3), data.test.objects.labels != 90)
    with pytest.raises(UserError, match=r"task 2 has no object in instances_val2017.json \(its categories: ring\)"):
        DetectionData("toy", data.train, without).into_stream(num_tasks=3)


def test_parts_with_other_categories_are_refused(root):
    data = coco.load(defaults(coco.OPTIONS, path=str(root)))
    other = dataclasses.replace(data.test, categories={3: "dog", 7: "hat", 90: "ring"})
    with pytest.raises(UserError, match="have different categories: use two parts of one data set"):
        DetectionData("toy", data.train, other).into_stream(num_tasks=1)


def test_segmentations_have_a_fingerprint_where_they_are_read(tmp_path):
    records = coco_sets.content_with_segmentations()
    for part in ("train2017", "val2017"):
        coco_sets.write(tmp_path, part, records)
    before = streams.fingerprint(load(tmp_path, num_tasks=1, segmentations=True))
    assert before["train/segmentations"].startswith("4 segmentations, ") and "test/segmentations" not in before
    records["annotations"][0]["segmentation"][0][0] += 1
    (tmp_path / "annotations" / "instances_train2017.json").write_text(json.dumps(records))
    after = streams.fingerprint(load(tmp_path, num_tasks=1, segmentations=True))
    assert {key for key in before if before[key] != after[key]} == {"train/segmentations"}
    assert "train/segmentations" not in streams.fingerprint(load(tmp_path, num_tasks=1))


def test_the_fingerprint_changes_with_a_box_and_with_a_file(root, tmp_path):
    before = streams.fingerprint(load(root, num_tasks=1))
    assert set(before) == {"train/images", "train/boxes", "test/images", "test/boxes"}
    assert before["train/images"].startswith("3 images, ") and before["train/boxes"].startswith("5 objects, ")
    assert before == streams.fingerprint(load(root, num_tasks=3))
    records = coco_sets.content()
    for part in ("train2017", "val2017"):
        coco_sets.write(tmp_path, part, records)
    path = tmp_path / "annotations" / "instances_train2017.json"
    same = streams.fingerprint(load(tmp_path, num_tasks=1))
    records["annotations"][0]["bbox"][0] += 1
    path.write_text(json.dumps(records))
    changed = streams.fingerprint(load(tmp_path, num_tasks=1))
    assert {key for key in same if same[key] != changed[key]} == {"train/boxes"}
    files = coco_files.read_part(tmp_path, "val2017").files
    with open(files[0], "ab") as file:
        file.write(b"0")
    moved = streams.fingerprint(load(tmp_path, num_tasks=1, check_sizes=False))
    assert {key for key in changed if changed[key] != moved[key]} == {"test/images"}
