"""Streams with fewer tasks, and tasks of further folders: labels and rows by hand."""

import numpy as np
import pytest
from PIL import Image

from cdl_jax.data import stream as streams
from cdl_jax.data import task_limits
from cdl_jax.data.stream import Dataset, Split
from cdl_jax.errors import UserError
from cdl_jax.options import defaults

OPTIONS = defaults(streams.OPTIONS)


def toy():
    """Six classes; image i of class i % 6 is filled with i."""
    labels = np.arange(12, dtype=np.int32) % 6
    images = np.broadcast_to(np.arange(12, dtype=np.uint8)[:, None, None, None], (12, 4, 4, 3)).copy()
    return Dataset("toy", tuple("abcdef"), Split(labels, images=images), Split(labels, images=images[:, ::-1]))


@pytest.fixture
def folder(tmp_path):
    """Two classes of images of other sizes; the middle of each is white or gray."""
    for name, value in (("x", 255), ("y", 100)):
        for part, count in (("train", 3), ("test", 1)):
            (tmp_path / part / name).mkdir(parents=True)
            for number in range(count):
                pixels = np.zeros((8, 24, 3), np.uint8)
                pixels[:, 4:20] = value
                Image.fromarray(pixels).save(tmp_path / part / name / f"{number}.png")
    return tmp_path


def test_the_first_tasks_have_the_labels_and_images_that_they_had():
    stream = streams.split_into_tasks(toy(), num_tasks=3, class_order=(4, 1, 0, 2, 5, 3))
    first = task_limits.first_tasks(stream, 2)
    assert (first.num_tasks, first.class_order, first.class_names) == (2, (4, 1, 0, 2), ("e", "b", "a", "c"))
    assert first.train.images[:, 0, 0, 0].tolist() == [0, 1, 2, 4, 6, 7, 8, 10]  # without classes 3 and 5
    assert first.train.labels.tolist() == [2, 1, 3, 0, 2, 1, 3, 0]
    assert [task.train.tolist() for task in first.tasks] == [[1, 3, 5, 7], [0, 2, 4, 6]]
    with pytest.raises(UserError, match="data.max_tasks=4: the stream has 3 tasks"):
        task_limits.first_tasks(stream, 4)


def test_a_folder_is_a_task_behind_the_others_with_images_of_their_size(folder):
    stream = streams.split_into_tasks(toy(), num_tasks=2, class_order=(3, 1, 0, 2))
    longer = task_limits.append_folders(stream, [str(folder)], 6, OPTIONS)
    assert longer.class_names == ("d", "b", "a", "c", "x", "y") and longer.class_order == (3, 1, 0, 2, 6, 7)
    assert [task.classes for task in longer.tasks] == [(3, 1), (0, 2), (6, 7)]
    count = len(stream.train)
    np.testing.assert_array_equal(longer.train.images[:count], stream.train.images)
    assert longer.train.labels[count:].tolist() == [4, 4, 4, 5, 5, 5] and longer.test.labels[-2:].tolist() == [4, 5]
    assert longer.tasks[2].train.tolist() == [*range(count, count + 6)]
    for task, before in zip(longer.tasks, stream.tasks, strict=False):
        np.testing.assert_array_equal(task.train, before.train)
    middle = longer.train.images[[count, count + 3]]  # the middle square of 8 x 24 is filled
    assert middle.shape[1:] == (4, 4, 3) and (middle[0] == 255).all() and (middle[1] == 100).all()


def test_a_class_that_the_stream_has_already_is_refused(folder):
    dataset = toy()
    stream = streams.split_into_tasks(Dataset("toy", tuple("abcdey"), dataset.train, dataset.test), num_tasks=2)
    with pytest.raises(UserError, match="has the class 'y', which an earlier task has"):
        task_limits.append_folders(stream, [str(folder)], 6, OPTIONS)


def test_max_train_limits_the_source_alone(folder):
    stream = streams.split_into_tasks(toy(), num_tasks=2, max_train=11)
    longer = task_limits.append_folders(stream, [str(folder)], 6, {**OPTIONS, "max_train": 11})
    assert len(stream.train) == 11 and len(longer.train) == 11 + 6


def test_a_source_of_files_keeps_files(folder, tmp_path_factory):
    root = tmp_path_factory.mktemp("own")
    for name in ("a", "b"):
        (root / name).mkdir()
        for number in range(5):
            Image.fromarray(np.zeros((6, 6, 3), np.uint8)).save(root / name / f"{number}.png")
    options = {"name": "folder", "path": str(root), "num_tasks": 1, "append": (str(folder),)}
    stream = streams.load(options)
    assert stream.train.images is None and len(stream.train.files) == 8 + 6
    assert stream.class_names == ("a", "b", "x", "y") and stream.num_tasks == 2
    assert stream.test.files[-1].endswith("test/y/0.png")


def test_seeds_with_class_orders_of_their_own_have_no_further_tasks():
    stream = streams.split_into_tasks(toy(), num_tasks=3)
    options = {"class_order": "shuffle", "class_order_seed": -1, "max_tasks": 2}
    with pytest.raises(UserError, match=r"data.max_tasks changes them"):
        streams.streams_for_seeds(stream, options, (0, 1))
