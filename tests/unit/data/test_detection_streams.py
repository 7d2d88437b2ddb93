"""Class-incremental detection: the images and objects of each task."""

import numpy as np
import pytest

from cdl_jax.data.detection import coco_files, streams
from cdl_jax.data.detection.coco_files import DetectionSet, Objects
from cdl_jax.errors import UserError
from tests.support import coco_sets


@pytest.fixture
def data(tmp_path):
    records = coco_sets.content()
    records["annotations"].append({"id": 40, "image_id": 7, "category_id": 7, "bbox": [1, 1, 9, 9]})
    coco_sets.write(tmp_path, records=records)
    return coco_files.read_part(tmp_path, "train2017")


def test_an_image_belongs_to_each_task_of_which_it_has_an_object(data):
    first, second = streams.split_into_tasks(data, [(3, 90), (7,)])
    assert first.train.image_ids.tolist() == [4, 9]  # image 4 by its object of 90: its object of 3 is a crowd
    assert second.train.image_ids.tolist() == [4, 7]
    assert first.train.targets(0).labels.tolist() == [90] and first.train.targets(1).labels.tolist() == [3]
    assert [second.train.targets(row).labels.tolist() for row in (0, 1)] == [[7], [7]]
    assert first.train.objects.ids.tolist() == [31, 17, 12] and second.train.objects.ids.tolist() == [15, 40]
    assert first.train.num_outputs == second.train.num_outputs == 91
    assert second.train.files == data.files[:2]


def test_a_crowd_alone_does_not_bring_an_image_into_a_task(data):
    (task,) = streams.split_into_tasks(data, [(3,)])
    assert task.train.image_ids.tolist() == [9]  # image 4 has a crowd of 3


def test_subsets_are_the_old_the_new_and_all_categories(data):
    tasks = streams.split_into_tasks(data, [(90,), (3,), (7,)])
    assert tasks[0].subsets == {"old": (), "new": (90,), "all": (90,)}
    assert tasks[2].subsets == {"old": (90, 3), "new": (7,), "all": (90, 3, 7)}


def test_categories_that_no_task_lists_are_not_annotated(data):
    (task,) = streams.split_into_tasks(data, [(90,)])
    assert task.train.objects.labels.tolist() == [90] and task.train.categories == {90: "ring"}


def test_divisions_of_the_field():
    nothing = np.zeros(0, int)
    objects = Objects(nothing, nothing, nothing, np.zeros((0, 4)), np.zeros(0), np.zeros(0, bool))

    def with_categories(ids):
        return DetectionSet("toy", {i: str(i) for i in ids}, nothing, (), np.zeros((0, 2), int), objects)

    voc = with_categories(range(1, 21))
    assert streams.divide(voc, "15+5") == (tuple(range(1, 16)), tuple(range(16, 21)))
    assert streams.divide(voc, (19, 1))[1] == (20,)
    assert [len(ids) for ids in streams.divide(voc, "5+5+5+5")] == [5] * 4
    absent = {12, 26, 29, 30, 45, 66, 68, 69, 71, 83}
    coco = with_categories([i for i in range(1, 91) if i not in absent])
    first, second = streams.divide(coco, "40+40")
    assert (first[-1], second[0], second[-1]) == (44, 46, 90)
    for sizes, message in (
        ("10+9", "10\\+9 has 19 categories, but toy has 20"),
        ("10-10", "must be sizes of tasks such as '15\\+5'"),
        ("20+0", "must be positive integers"),
        ((10.0, 10), "must be positive integers"),
        ((), "must be positive integers"),
    ):
        with pytest.raises(UserError, match=message):
            streams.divide(voc, sizes)


@pytest.mark.parametrize(
    ("division", "message"),
    [
        ([], "the division has no tasks"),
        ([(3,), ()], "task 1 of the division has no categories"),
        ([(3,), (8,)], r"task 1 of the division: instances_train2017.json has no category 8 \(it has 3, 7, 90\)"),
        ([(3, 7), (90, 3)], "category 3 is in task 0 and in task 1"),
        ([(3, 3)], "category 3 is in task 0 and in task 0"),
    ],
)
def test_mistakes_of_a_division_are_refused(data, division, message):
    with pytest.raises(UserError, match=message):
        streams.split_into_tasks(data, division)


def test_a_task_without_images_is_refused(tmp_path):
    records = coco_sets.content()
    records["annotations"] = [a for a in records["annotations"] if a["id"] != 31]
    coco_sets.write(tmp_path, records=records)
    data = coco_files.read_part(tmp_path, "train2017")
    with pytest.raises(UserError, match=r"task 1 of .* has no training image \(its categories: ring\)"):
        streams.split_into_tasks(data, [(3, 7), (90,)])
