"""Kinds of streams: domains, blurry, increments, class orders by name, refusals."""

from dataclasses import replace

import numpy as np
import pytest

from cdl_jax.data import class_order, stream, task_division
from cdl_jax.data.stream import Dataset, Split
from cdl_jax.errors import UserError

DOMAINS = ("photo", "sketch", "paint")


def split(labels, domains=None):
    labels = np.asarray(labels, np.int32)
    images = np.broadcast_to(labels[:, None, None, None], (len(labels), 2, 2, 3)).astype(np.uint8)
    return Split(labels, images=images, domains=None if domains is None else np.asarray(domains, np.int32))


def with_domains(test_domains=(0, 0, 1, 1, 2, 2)):
    """Returns two classes in three domains.

    Each class has three training images and, by default, one test image in each domain.
    """
    train = split(np.tile([0, 1], 9), np.repeat([0, 1, 2], 6))
    return Dataset("rooms", ("chair", "lamp"), train, split(np.tile([0, 1], 3), test_domains), DOMAINS)


def many(num_classes=8, train=20, test=2):
    labels = np.arange(num_classes)
    return Dataset(
        "toy", tuple("abcdefghij"[:num_classes]), split(np.tile(labels, train)), split(np.repeat(labels, test))
    )


def test_a_domain_stream_has_a_task_for_each_domain_with_all_classes():
    made = stream.split_into_tasks(with_domains(), num_tasks=0, kind="domain")
    assert [(task.first, task.end, task.classes) for task in made.tasks] == [(0, 2, (0, 1))] * 3
    assert [task.train.tolist() for task in made.tasks] == [[*range(6)], [*range(6, 12)], [*range(12, 18)]]
    assert [task.test.tolist() for task in made.tasks] == [[0, 1], [2, 3], [4, 5]]
    assert made.test_tasks.tolist() == [0, 0, 1, 1, 2, 2]
    assert (made.domains, made.num_classes, made.num_tasks) == (DOMAINS, 2, 3)


def test_domains_are_chosen_and_ordered_by_name_and_limits_hold_in_each():
    options = {"num_tasks": 2, "kind": "domain", "domains": ("paint", "photo"), "max_train_per_class": 1}
    made = stream.split_into_tasks(with_domains(), **options)
    assert made.domains == ("paint", "photo")
    # The images of photo are rows 0 to 5 and those of paint 12 to 17; one of each class is left in each.
    assert [made.train.labels[task.train].tolist() for task in made.tasks] == [[0, 1], [0, 1]]
    assert [made.train.domains[task.train].tolist() for task in made.tasks] == [[0, 0], [1, 1]]


def test_test_images_of_all_domains_belong_to_every_task():
    made = stream.split_into_tasks(with_domains((-1,) * 6), num_tasks=3, kind="domain")
    assert [task.test.tolist() for task in made.tasks] == [[*range(6)]] * 3
    assert made.test_tasks.tolist() == [-1] * 6


def test_a_source_with_domains_may_be_class_incremental():
    made = stream.split_into_tasks(with_domains(), num_tasks=2)
    assert [len(task.train) for task in made.tasks] == [9, 9] and made.test_tasks is None


def test_a_blurry_stream_moves_a_share_of_the_images_of_half_of_the_classes():
    made = stream.split_into_tasks(many(), num_tasks=2, kind="blurry", disjoint_share=0.5, blurry_share=0.4)
    assert np.concatenate([task.train for task in made.tasks]).size == 160  # each image in one task
    counts = np.array([np.bincount(made.train.labels[task.train], minlength=8) for task in made.tasks])
    assert counts.sum(axis=0).tolist() == [20] * 8
    # Of 20 images of a blurry class 8 are dealt, so at least 12 stay; a disjoint class keeps all 20.
    assert sorted((counts == 20).sum(axis=1).tolist()) >= [2, 2] and counts.max(axis=0).min() >= 12
    # The four blurry classes give 32 images, of which each task receives half.
    assert counts.sum(axis=1).tolist() == [80, 80]
    seen = (counts.cumsum(axis=0) > 0).sum(axis=1)
    assert [(task.first, task.end) for task in made.tasks] == [(0, seen[0]), (0, 8)]
    for task in made.tasks:
        assert made.train.labels[task.train].max() < task.end and made.test.labels[task.test].max() < task.end
    assert [np.unique(made.test.labels[task.test]).size for task in made.tasks] == [4, 4]
    pixels = made.train.images[:, 0, 0, 0]  # the class id of each image
    assert np.array_equal(np.array(made.class_order)[made.train.labels], pixels)


def test_a_blurry_stream_without_moved_images_is_the_class_incremental_one():
    blurry = stream.split_into_tasks(many(), num_tasks=4, kind="blurry", blurry_share=0.0)
    plain = stream.split_into_tasks(many(), num_tasks=4)
    for one, other in zip(blurry.tasks, plain.tasks, strict=True):
        assert one.train.tolist() == other.train.tolist() and one.test.tolist() == other.test.tolist()
        assert one.end == other.end and one.first == 0


def test_blurry_draws_follow_the_seed_and_random_sizes_fill_every_task():
    options = {"num_tasks": 3, "kind": "blurry", "blurry_sizes": "random"}
    streams = [stream.split_into_tasks(many(), class_order_seed=seed, **options) for seed in (0, 0, 1)]
    rows = [[task.train.tolist() for task in made.tasks] for made in streams]
    assert rows[0] == rows[1] != rows[2]
    assert all(len(task.test) for made in streams for task in made.tasks)


def test_drawn_sizes_are_all_divisions():
    drawn = {task_division.draw_sizes(4, 2, seed) for seed in range(40)}
    assert drawn == {(1, 3), (2, 2), (3, 1)}


def test_increments_are_the_splits_of_the_field():
    divide = task_division.divide_classes
    assert divide(100, 0, increment=10) == (10,) * 10  # B0-Inc10
    assert divide(100, 0, base_classes=50, increment=10) == (50, 10, 10, 10, 10, 10)  # B50-Inc10
    assert divide(196, 10, base_classes=16, increment=20) == (16, *(20,) * 9)
    assert divide(100, 0, increment=30) == (30, 30, 30, 10)  # PyCIL and PILOT: the last task has the remaining classes


def test_numpy_shuffle_is_the_order_of_pycil():
    np.random.seed(1993)
    expected = np.random.permutation(100).tolist()
    assert list(class_order.order_classes(100, "numpy_shuffle", 1993)) == expected
    assert expected[:5] == [68, 56, 78, 8, 23]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"base_classes": 50}, "data.base_classes=50 needs data.increment"),
        ({"increment": 20, "num_tasks": 4}, "data.increment=20 makes 5 tasks: set num_tasks=5 or 0"),
        ({"increment": 20, "task_sizes": (50, 50)}, "both give the sizes"),
        ({"base_classes": 200, "increment": 50, "num_tasks": 0}, "data.base_classes=200 is more than the 100 classes"),
    ],
)
def test_increments_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        task_division.divide_classes(100, **{"num_tasks": 0, **options})


def test_class_orders_by_name(tmp_path):
    names = ("ant", "bee", "great white shark, white shark", "7")
    order = lambda text: class_order.order_classes(4, text, class_names=names)  # noqa: E731
    assert order("bee,ant") == (1, 0) and order(("7", "bee")) == (3, 1)
    assert order("great white shark, white shark\nant") == (2, 0)
    path = tmp_path / "order.txt"
    path.write_text("bee\n\n7\nant\n", encoding="utf-8")
    assert order(str(path)) == (1, 3, 0)
    path.write_text("2\n0\n", encoding="utf-8")
    assert order(str(path)) == (2, 0)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ant,bea", "no class 'bea'; did you mean 'bee'"),
        ("ant,ant", "0 is listed twice"),
        ("missing.txt", "data.class_order='missing.txt' is no file: set it"),
        ("naturall", "did you mean 'natural'"),
        ("ant,twin", "2 classes have the name 'twin'"),
    ],
)
def test_names_that_do_not_fit_are_refused(text, message):
    with pytest.raises(UserError, match=message):
        class_order.order_classes(4, text, class_names=("ant", "bee", "twin", "twin"))


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        (many(), {"kind": "domain"}, "toy has no domains; choose a source with domains"),
        (with_domains(), {"kind": "domain", "num_tasks": 2}, "one task of each of 3 domains: set data.num_tasks=0"),
        (with_domains(), {"kind": "domain", "increment": 1}, "leave out data.task_sizes"),
        (with_domains(), {"kind": "domain", "domains": ("photos",)}, "no domain 'photos': did you mean 'photo'"),
        (with_domains(), {"kind": "domain", "domains": ("photo", "photo")}, "'photo' is listed twice"),
        (with_domains(), {"domains": ("photo",), "num_tasks": 1}, "belongs to data.kind='domain'"),
        (with_domains((0, 0, 1, 1, 1, 1)), {"kind": "domain"}, "domain 'paint' of rooms has no test images"),
        (replace(many(), domains=("x", "y")), {"kind": "domain"}, "training set of toy: domains must be int32"),
        (with_domains((0, 0, 1, 1, 3, 2)), {"kind": "domain"}, "test set of rooms: domains must be int32"),
        (many(), {"kind": "blurry", "blurry_sizes": "random", "increment": 2}, "set data.num_tasks alone"),
        (many(), {"kind": "blurry", "blurry_sizes": "random", "base_classes": 2}, "set data.num_tasks alone"),
    ],
)
def test_streams_that_cannot_be_made_are_refused(data, options, message):
    with pytest.raises(UserError, match=message) as error:
        stream.split_into_tasks(data, **{"num_tasks": 0, **options})
    assert "\n" not in str(error.value)


def test_seeds_with_class_orders_of_their_own():
    data, options = with_domains(), {"kind": "domain", "num_tasks": 0, "class_order": "shuffle"}
    made = stream.split_into_tasks(data, **options)
    streams = stream.streams_for_seeds(made, {**options, "class_order_seed": -1}, (0, 1, 2, 3))
    assert {one.class_order for one in streams} == {(0, 1), (1, 0)}
    assert all(one.domains == DOMAINS and one.tasks[1].train.tolist() == [*range(6, 12)] for one in streams)
    blurry = stream.split_into_tasks(many(), num_tasks=2, kind="blurry")
    with pytest.raises(UserError, match="run the seeds one by one"):
        stream.streams_for_seeds(blurry, {"kind": "blurry", "class_order_seed": -1}, (0, 1))


def test_a_data_set_with_tasks_of_its_own():
    data = Dataset("two sets", tuple("abcd"), many(4).train, many(4).test, task_sizes=(1, 3))
    assert [len(task.classes) for task in stream.split_into_tasks(data, num_tasks=0).tasks] == [1, 3]
    assert [len(task.classes) for task in stream.split_into_tasks(data, num_tasks=2).tasks] == [2, 2]
    with pytest.raises(UserError, match="keeps the tasks of two sets and its class order"):
        stream.split_into_tasks(data, num_tasks=0, class_order="3,2,1,0")
