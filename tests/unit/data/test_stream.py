"""Streams: class orders, tasks, limits, validation, and refusals in one line."""

import numpy as np
import pytest

from cdl_jax.data import class_order, stream
from cdl_jax.data.sources import digits
from cdl_jax.data.stream import Dataset, Split
from cdl_jax.errors import UserError
from cdl_jax.options import check, defaults


def dataset(num_classes=6, train=4, test=2):
    """Returns interleaved classes; pixels have the class as value, to check labels."""

    def split(n):
        labels = np.tile(np.arange(num_classes, dtype=np.int32), n)
        return Split(
            labels, images=np.broadcast_to(labels[:, None, None, None], (len(labels), 2, 3, 3)).astype(np.uint8)
        )

    return Dataset("toy", tuple("abcdefghij"[:num_classes]), split(train), split(test))


# First ids of random.seed(seed); random.shuffle(list(range(n))), as CODA-Prompt and APT order their classes.
PYTHON_SHUFFLE = {
    (100, 0): [23, 8, 11, 7, 48, 13, 1, 91, 94, 54, 16, 63],
    (100, 1): [53, 37, 65, 51, 4, 20, 38, 9, 10, 81, 44, 36],
    (100, 10): [21, 50, 60, 43, 16, 69, 97, 67, 94, 29, 86, 89],
    (200, 0): [131, 181, 22, 172, 144, 92, 97, 187, 58, 93, 6, 70],
    (200, 3): [158, 62, 14, 69, 47, 137, 110, 6, 116, 88, 130, 100],
}


@pytest.mark.parametrize(("size", "seed"), PYTHON_SHUFFLE)
def test_python_shuffle_is_the_order_of_coda_prompt(size, seed):
    order = class_order.order_classes(size, "python_shuffle", seed)
    assert list(order[:12]) == PYTHON_SHUFFLE[size, seed]
    assert sorted(order) == list(range(size))


@pytest.mark.parametrize(
    ("seed", "first"),
    [
        (0, [28, 11, 10, 41, 2, 27, 38, 31, 22, 4, 33, 35]),
        (1, [27, 35, 40, 38, 2, 3, 48, 29, 46, 31, 32, 39]),
        (10, [37, 23, 44, 42, 47, 20, 3, 30, 7, 6, 39, 2]),
    ],
)
def test_validation_permutation_is_the_one_of_coda_prompt(seed, first):
    permutation = class_order.validation_permutation(50, seed)
    assert permutation[:12].tolist() == first
    assert sorted(permutation) == list(range(50))


def test_natural_order_ignores_the_seed_and_shuffle_follows_it():
    assert class_order.order_classes(7, "natural", 5) == tuple(range(7))
    orders = {class_order.order_classes(20, "shuffle", seed) for seed in range(3)}
    assert len(orders) == 3
    assert class_order.order_classes(20, "shuffle", 1) == tuple(np.random.default_rng(1).permutation(20))


@pytest.mark.parametrize("word", ["shuffle", "python_shuffle"])
def test_each_seed_has_the_stream_of_its_single_run_over_the_same_images(word):
    data, how = dataset(), {"class_order": word, "class_order_seed": -1, "validation_fraction": 0.0}
    cut = {"num_tasks": 0, "task_sizes": (3, 1, 2), "max_train_per_class": 3, "class_order": word}
    alone = {seed: stream.split_into_tasks(data, class_order_seed=seed, **cut) for seed in (5, 0, 2)}
    together = stream.streams_for_seeds(alone[5], how, tuple(alone))
    assert together[0] is alone[5]
    assert len({own.class_order for own in together}) == 3
    for own, wanted in zip(together, alone.values(), strict=True):
        assert (own.class_order, own.class_names) == (wanted.class_order, wanted.class_names)
        for part in ("train", "test"):
            ours, theirs = getattr(own, part), getattr(wanted, part)
            assert ours.images is getattr(alone[5], part).images
            assert np.array_equal(ours.images, theirs.images)
            assert np.array_equal(ours.labels, theirs.labels) and ours.labels.dtype == theirs.labels.dtype
            for task, other in zip(own.tasks, wanted.tasks, strict=True):
                assert (task.index, task.classes, task.first) == (other.index, other.classes, other.first)
                assert np.array_equal(getattr(task, part), getattr(other, part))
    for shared in ({**how, "class_order_seed": 0}, {**how, "class_order": "natural"}, {**how, "class_order": (1, 0)}):
        assert stream.streams_for_seeds(alone[5], shared, (5, 0)) == (alone[5],) * 2
    with pytest.raises(UserError, match="holds out different images for each of config.seeds: run the seeds one"):
        stream.streams_for_seeds(alone[5], {**how, "validation_fraction": 0.2}, (5, 0))
    assert stream.streams_for_seeds(alone[5], {**how, "validation_fraction": 0.2}, (5,)) == (alone[5],)
    with pytest.raises(UserError, match="data.max_train draws different images for each of config.seeds"):
        stream.streams_for_seeds(alone[5], {**how, "max_train": 4}, (5, 0))


def test_minus_one_is_the_seed_of_the_run():
    options = {"name": "glyph_mini", "num_tasks": 5, "class_order": "shuffle", "validation_fraction": 0.2}
    own, named = stream.load({**options, "class_order_seed": -1}, 4), stream.load({**options, "class_order_seed": 4}, 1)
    assert own.class_order == named.class_order != stream.load({**options, "class_order_seed": -1}, 1).class_order
    for part in ("train", "test"):
        assert np.array_equal(getattr(own, part).images, getattr(named, part).images)
        assert np.array_equal(getattr(own, part).labels, getattr(named, part).labels)
    with pytest.raises(UserError, match="data.class_order_seed=-2 must be at least -1"):
        stream.load({**options, "class_order_seed": -2}, 4)
    with pytest.raises(UserError, match="data.class_order_seed=-1 is the seed of a run, and there is no run here"):
        stream.load({**options, "class_order_seed": -1})


def test_shuffling_leaves_pythons_own_generator_alone():
    import random

    random.seed(7)
    expected = random.random()
    random.seed(7)
    class_order.order_classes(10, "python_shuffle", 3)
    assert random.random() == expected


def test_labels_are_contiguous_in_each_task_and_match_their_images():
    s = stream.split_into_tasks(dataset(), num_tasks=3, class_order=(4, 0, 5, 1, 3, 2))
    assert s.class_names == ("e", "a", "f", "b", "d", "c")
    assert [(t.index, t.classes, t.first, t.end) for t in s.tasks] == [
        (0, (4, 0), 0, 2),
        (1, (5, 1), 2, 4),
        (2, (3, 2), 4, 6),
    ]
    for task in s.tasks:
        assert task.train.dtype == np.int32 and len(task.train) == 8 and len(task.test) == 4
        for split, rows in ((s.train, task.train), (s.test, task.test)):
            assert set(split.labels[rows]) == set(range(task.first, task.end))
            assert np.array_equal(split.images[rows, 0, 0, 0], np.asarray(s.class_order)[split.labels[rows]])
    assert s.train.labels.dtype == np.int32


@pytest.mark.parametrize("order", ["natural", "python_shuffle", "shuffle", (5, 3, 1)])
def test_every_row_belongs_to_exactly_one_task(order):
    s = stream.split_into_tasks(dataset(), num_tasks=3, class_order=order, max_train_per_class=3)
    assert np.array_equal(np.sort(np.concatenate([t.train for t in s.tasks])), np.arange(len(s.train)))
    assert np.array_equal(np.sort(np.concatenate([t.test for t in s.tasks])), np.arange(len(s.test)))


def test_classes_that_are_not_listed_are_no_part_of_the_stream():
    for order in ((5, 1), "5,1"):
        s = stream.split_into_tasks(dataset(), num_tasks=2, class_order=order)
        assert (s.num_classes, s.num_tasks, s.class_order, s.class_names) == (2, 2, (5, 1), ("f", "b"))
        assert (len(s.train), len(s.test)) == (8, 4)
        assert s.train.images[:, 0, 0, 0].tolist() == [1, 5] * 4 and s.train.labels.tolist() == [1, 0] * 4


def test_a_stream_of_all_images_in_natural_order_copies_no_images():
    data = dataset()
    s = stream.split_into_tasks(data, num_tasks=2)
    assert s.train.images is data.train.images and s.test.images is data.test.images


def test_unequal_tasks():
    s = stream.split_into_tasks(dataset(), num_tasks=0, task_sizes=(3, 1, 2))
    assert [(t.first, t.end, len(t.train)) for t in s.tasks] == [(0, 3, 12), (3, 4, 4), (4, 6, 8)]


def test_limits_keep_evenly_spaced_images_of_each_class():
    labels = np.zeros(10, np.int32)
    split = Split(labels, images=np.arange(10, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 1, 3), np.uint8))
    s = stream.split_into_tasks(
        Dataset("one", ("a",), split, split), num_tasks=1, max_train_per_class=4, max_test_per_class=50
    )
    assert s.train.images[:, 0, 0, 0].tolist() == [0, 2, 5, 7]
    assert len(s.test) == 10


def test_few_images_are_those_of_the_legacy_generator_in_the_order_of_the_data_set():
    labels, pixels = np.arange(20, dtype=np.int32) % 2, np.arange(20, dtype=np.uint8)
    split = Split(labels, images=np.broadcast_to(pixels[:, None, None, None], (20, 1, 1, 3)))
    data = Dataset("two", ("a", "b"), split, split)
    s = stream.split_into_tasks(data, num_tasks=1, max_train=6, class_order_seed=3)
    drawn = np.random.RandomState(3).choice(20, 6, replace=False)
    assert s.train.images[:, 0, 0, 0].tolist() == sorted(drawn.tolist())
    assert s.train.labels.tolist() == [pixel % 2 for pixel in sorted(drawn)] and len(s.test) == 20
    with pytest.raises(UserError, match="data.max_train=21: there are 20 training images: set at most that"):
        stream.split_into_tasks(data, num_tasks=1, max_train=21)
    held_out = stream.split_into_tasks(data, num_tasks=1, max_train=16, validation_fraction=0.2)
    assert len(held_out.train) == 16 and len(held_out.test) == 4


def test_limits_work_for_files():
    split = Split(np.asarray([0, 1, 0, 1, 0], np.int32), files=("a", "b", "c", "d", "e"))
    s = stream.split_into_tasks(Dataset("files", ("x", "y"), split, split), num_tasks=2, max_train_per_class=1)
    assert (s.train.files, s.train.labels.tolist()) == (("a", "b"), [0, 1])
    assert len(s.test.files) == 5


def test_validation_tests_on_the_last_fifth_of_the_shuffled_training_set():
    labels = np.zeros(50, np.int32)
    images = np.arange(50, dtype=np.uint8)[:, None, None, None] * np.ones((1, 1, 1, 3), np.uint8)
    nothing = Split(labels[:0], images=images[:0])
    s = stream.split_into_tasks(
        Dataset("one", ("a",), Split(labels, images), nothing), num_tasks=1, validation_fraction=0.2, class_order_seed=0
    )
    assert s.test.images[:, 0, 0, 0].tolist() == sorted([21, 19, 9, 39, 46, 3, 0, 47, 44, 36])
    assert len(s.train) == 40
    assert not set(s.test.images[:, 0, 0, 0]) & set(s.train.images[:, 0, 0, 0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"num_tasks": 4}, ["num_tasks=4", "num_tasks=3 or 6", "task_sizes=(2,2,1,1)"]),
        ({"num_tasks": 7}, ["1 to 6 tasks"]),
        ({"num_tasks": -1}, ["num_tasks=-1 must not be negative"]),
        ({"num_tasks": 0, "task_sizes": (4, 4)}, ["sums up to 8", "6 classes"]),
        ({"num_tasks": 2, "task_sizes": (7, -1)}, ["task_sizes=(7, -1) must be at least 1"]),
        ({"num_tasks": 3, "task_sizes": (4, 2)}, ["num_tasks=2"]),
        ({"num_tasks": 1, "class_order": "shufle"}, ["did you mean 'shuffle'"]),
        ({"num_tasks": 1, "class_order": (0, 6)}, ["6 is not a class id", "0 to 5"]),
        ({"num_tasks": 1, "class_order": (0, 1, 0)}, ["0 is listed twice"]),
        ({"num_tasks": 1, "class_order": ()}, ["no class"]),
        ({"num_tasks": 1, "validation_fraction": 1.5}, ["validation_fraction=1.5"]),
        ({"num_tasks": 1, "max_test_per_class": -1}, ["max_test_per_class=-1"]),
    ],
)
def test_impossible_splits_raise_errors_of_one_line(options, words):
    with pytest.raises(UserError) as error:
        check(stream.OPTIONS, options, "data")
        stream.split_into_tasks(dataset(), **options)
    assert "\n" not in str(error.value)
    for word in words:
        assert word in str(error.value)


def test_a_task_without_training_images_and_a_class_without_test_images_are_named():
    data = dataset()
    some = data.train.take(np.flatnonzero(data.train.labels < 4))
    with pytest.raises(UserError, match=r"task 2 of toy has no training images \(its classes: e, f\)"):
        stream.split_into_tasks(Dataset("toy", data.class_names, some, data.test), num_tasks=3)
    with pytest.raises(UserError, match=r"class 4 \('e'\) of toy has no test images"):
        stream.split_into_tasks(Dataset("toy", data.class_names, data.train, some), num_tasks=3)
    images = Split(np.arange(12, dtype=np.int32) % 6, images=np.zeros((12, 1, 1, 3), np.uint8))
    data = Dataset("toy", data.class_names, images, images)
    with pytest.raises(UserError, match=r"has no training images .*: lower data.validation_fraction=0.99, add some or"):
        stream.split_into_tasks(data, num_tasks=3, validation_fraction=0.99)
    with pytest.raises(UserError, match=r"has no test images: raise data.validation_fraction=0.1, add some or"):
        stream.split_into_tasks(data, num_tasks=3, validation_fraction=0.1)
    data = dataset()
    kept = stream.split_into_tasks(Dataset("toy", data.class_names, some, some), num_tasks=2, class_order="0,1,2,3")
    assert kept.num_classes == 4


def test_a_class_without_training_images_is_named():
    data = dataset()
    some = data.train.take(np.flatnonzero(data.train.labels != 3))
    with pytest.raises(UserError, match=r"class 3 \('d'\) of toy has no training images: add some or leave it out"):
        stream.split_into_tasks(Dataset("toy", data.class_names, some, data.test), num_tasks=3)
    without = stream.split_into_tasks(
        Dataset("toy", data.class_names, some, data.test), num_tasks=1, class_order=(0, 1, 2, 4, 5)
    )
    assert without.num_classes == 5


@pytest.mark.parametrize(
    ("split", "words"),
    [
        (Split(np.asarray([0, 6], np.int32), np.zeros((2, 4, 4, 3), np.uint8)), "labels are 0 to 6"),
        (Split(np.zeros(3, np.int32), np.zeros((2, 4, 4, 3), np.uint8)), "2 images but 3 labels"),
        (Split(np.zeros(2, np.int32), np.zeros((2, 4, 4, 3), np.float32)), "float32"),
        (Split(np.zeros(2, np.int32), np.zeros((2, 4, 4), np.uint8)), r"\(2, 4, 4\)"),
    ],
)
def test_a_source_with_impossible_arrays_raises_an_error(split, words):
    data = dataset()
    with pytest.raises(UserError, match=words):
        stream.split_into_tasks(Dataset("toy", data.class_names, split, data.test), num_tasks=1)


def test_load_finds_a_users_own_source_by_its_dotted_path(tmp_path, monkeypatch):
    (tmp_path / "my_images_source.py").write_text(
        "import numpy as np\n"
        "from cdl_jax.data.stream import Dataset, Split\n"
        "OPTIONS = {'side': 2, 'num_tasks': 3}\n"
        "def load(options):\n"
        "    assert options['path'] == 'here'\n"
        "    split = Split(np.arange(3, dtype=np.int32), np.zeros((3, options['side'], 2, 3), np.uint8))\n"
        "    return Dataset('mine', ('a', 'b', 'c'), split, split)\n"
    )
    (tmp_path / "package_of_mine").mkdir()
    (tmp_path / "package_of_mine" / "__init__.py").write_text("")
    (tmp_path / "my_images_source.py").rename(tmp_path / "package_of_mine" / "source.py")
    (tmp_path / "package_of_mine" / "empty.py").write_text("")
    monkeypatch.syspath_prepend(tmp_path)
    s = stream.load({"name": "package_of_mine.source", "path": "here", "side": 5})
    assert (s.name, s.num_tasks, s.train.images.shape) == ("mine", 3, (3, 5, 2, 3))
    with pytest.raises(UserError, match="OPTIONS"):
        stream.load({"name": "package_of_mine.empty"})


def test_load_takes_a_config_dict():
    import ml_collections

    config = ml_collections.ConfigDict(defaults(stream.OPTIONS, name="glyph_mini", part="incremental", num_tasks=5))
    config.class_order = "python_shuffle"
    s = stream.load(config)
    assert (s.num_classes, s.num_tasks, len(s.train), len(s.test)) == (20, 5, 995, 400)
    assert s.train.images.shape == (995, 32, 32, 3)


def test_an_unknown_source_gets_the_nearest_name():
    with pytest.raises(UserError, match="cifar100"):
        stream.load({"name": "cifar1000"})


@pytest.mark.parametrize(
    "order",
    ["5,0,3", "(5, 0, 3)", "[5, 0, 3]", (5, 0, 3), [5, 0, 3], np.array([5, 0, 3]), np.array([5, 0, 3], np.uint8)],
)
def test_class_ids_may_be_text_or_any_sequence_of_integers(order):
    made = stream.split_into_tasks(dataset(), num_tasks=3, class_order=order)
    assert made.class_order == (5, 0, 3) and made.class_names == ("f", "a", "d")
    assert [int(made.train.images[task.train[0], 0, 0, 0]) for task in made.tasks] == [5, 0, 3]
    assert stream.streams_for_seeds(made, {"class_order": order, "class_order_seed": -1}, (0, 1)) == (made, made)


@pytest.mark.parametrize("order", [(0.5, 1), ["a", 1], np.array([0.0, 1.0]), "shuffled"])
def test_class_orders_that_are_neither_integers_nor_names_are_refused(order):
    with pytest.raises(UserError, match="^data.class_order=[^\n]*class ids such as '5,0,7'$"):
        stream.split_into_tasks(dataset(), num_tasks=1, class_order=order)


def test_task_sizes_may_be_numpy_numbers():
    made = stream.split_into_tasks(dataset(), num_tasks=0, task_sizes=np.array([4, 2]))
    assert [task.classes for task in made.tasks] == [(0, 1, 2, 3), (4, 5)]


def test_class_names_of_any_bytes_become_text_of_one_line():
    toy = dataset(4)
    odd = stream.Dataset("x\ny", ("a\nb", "\udcff", "%s \x1b[31m", 7), toy.train, toy.test)
    made = stream.split_into_tasks(odd, num_tasks=1)
    assert made.name == "x\\ny" and made.class_names == ("a\\nb", "\\udcff", "%s \\x1b[31m", "7")
    for name in made.class_names:
        name.encode()


@pytest.mark.parametrize(("value", "found"), [(("toy", (), None, None), "a tuple of 4"), (None, "NoneType")])
def test_a_source_that_returns_something_else_than_a_data_set_is_refused(monkeypatch, value, found):
    monkeypatch.setattr(digits, "load", lambda options: value)
    with pytest.raises(UserError) as caught:
        stream.load({"name": "digits"}, 0)
    assert str(caught.value).startswith(f"{__file__}: function ")
    assert str(caught.value).endswith(f" must return a cdl_jax.data.stream.Dataset, but returns {found}")
