"""Batches of groups: order, extents and canvases."""

from collections import Counter

import numpy as np
import pytest

from cdl_jax.data.detection import canvases, transforms
from cdl_jax.data.detection.coco_files import DetectionSet, Objects
from cdl_jax.data.sampling import rng_for
from cdl_jax.errors import UserError
from cdl_jax.options import defaults

OPTIONS = {**defaults(transforms.OPTIONS), **defaults(canvases.OPTIONS)}


def set_of_sizes(*sizes):
    nothing = np.zeros(0, int)
    objects = Objects(nothing, nothing, nothing, np.zeros((0, 4)), np.zeros(0), np.zeros(0, bool))
    names = tuple(f"{i}.jpg" for i in range(len(sizes)))
    return DetectionSet("toy.json", {1: "a"}, np.arange(len(sizes)), names, np.array(sizes, np.int32), objects)


def test_groups_receive_the_shares_of_the_authors_processes():
    """By hand for each process: a share, batches of a group, no incomplete last batch."""
    n, groups, group_size = 23, 3, 2
    rows = canvases.epoch_rows(n, groups, group_size, seed=5, purpose=(1, 2))
    order = rng_for(5, 1, 2).permutation(n).tolist()
    padded = order + order[:1]  # 24 is a multiple of 3
    assert rows.shape == (4, 6) and rows.dtype == np.int32  # 8 images for each process
    for process in range(groups):
        share = padded[process::groups]
        assert rows[:, process * 2 : process * 2 + 2].reshape(-1).tolist() == share[:8]


def test_an_epoch_has_each_image_once_but_for_padding_and_the_last_batch():
    rows = canvases.epoch_rows(101, groups=4, group_size=3, seed=0, purpose=(0,))
    assert rows.shape == (26 // 3, 12)
    counts = Counter(rows.reshape(-1).tolist())
    assert set(counts.values()) <= {1, 2} and list(counts.values()).count(2) <= 3  # 104 - 101 repetitions
    assert not np.array_equal(rows, canvases.epoch_rows(101, 4, 3, seed=0, purpose=(1,)))
    assert not np.array_equal(rows, canvases.epoch_rows(101, 4, 3, seed=1, purpose=(0,)))


def test_the_length_of_an_epoch_is_that_of_the_authors_code():
    for groups, steps in ((6, 9857), (8, 7393)):
        assert len(canvases.epoch_rows(118_287, groups, 2, seed=0, purpose=())) == steps


def test_more_groups_than_images_repeat_images():
    assert sorted(canvases.epoch_rows(2, 5, 1, seed=0, purpose=())[0].tolist())[::4] == [0, 1]
    with pytest.raises(UserError, match="batches of 2 groups of 3 images are larger than the 4 training images"):
        canvases.epoch_rows(4, 2, 3, seed=0, purpose=())


@pytest.mark.parametrize("groups", [1, 2, 3])
def test_evaluation_groups_neighbors_whatever_the_number_of_groups(groups):
    rows, weight = canvases.evaluation_rows(7, groups, 2)
    pairs = rows.reshape(-1, 2)
    assert pairs[:4].tolist() == [[0, 1], [2, 3], [4, 5], [6, -1]] and (pairs[4:] == -1).all()
    assert weight.reshape(-1)[:7].tolist() == [1] * 7 and not weight.reshape(-1)[7:].any()


def test_evaluation_groups_of_several_processes():
    rows, weight = canvases.evaluation_rows(7, groups=3, group_size=2, processes=3)
    # Shares of 9 positions: 0 3 6, 1 4 0, 2 5 1, where 0 and 1 at the end repeat images.
    assert rows.tolist() == [[0, 3, 1, 4, 2, 5], [6, -1, 0, -1, 1, -1]]
    assert weight.tolist() == [[1] * 6, [1, 0, 0, 0, 0, 0]]


def test_extents_are_the_largest_sides_of_a_group():
    sizes = np.array([[480, 640], [640, 480], [320, 320], [320, 352]])
    assert canvases.group_extents(sizes, 2).tolist() == [[640, 640], [640, 640], [320, 352], [320, 352]]
    assert canvases.group_extents(sizes, 1).tolist() == sizes.tolist()


@pytest.mark.parametrize(
    ("extent", "canvas"),
    [
        ((800, 1328), (832, 1344)),
        ((1328, 800), (1344, 832)),
        ((1328, 1328), (1344, 1344)),
        ((640, 1088), (640, 1088)),
        ((656, 832), (832, 832)),  # smaller than 832 x 1344
        ((640, 833), (640, 1088)),
        ((16, 16), (832, 832)),  # 692,224 pixels, less than 640 x 1088
    ],
)
def test_the_smallest_canvas_is_chosen(extent, canvas):
    assert canvases.choose_canvas(np.array([[16, 16], extent]), OPTIONS["canvases"]) == canvas


def test_the_default_canvases_hold_every_image_of_coco():
    data = set_of_sizes((640, 480), (480, 640), (640, 160), (100, 640), (51, 59))
    for training in (True, False):
        assert canvases.canvases_for(data, OPTIONS, training=training) == list(OPTIONS["canvases"])
        height, width = canvases.largest_size(data, OPTIONS, training=training)
        assert max(height, width) == 1328


def test_one_canvas_can_be_chosen_by_the_set():
    small = {**OPTIONS, "scales": (), "crop": 0, "eval_size": 0, "canvases": ()}
    data = set_of_sizes((96, 128), (112, 96))
    assert canvases.canvases_for(data, small, training=True) == [(128, 128)]
    assert canvases.canvases_for(data, small, training=False) == [(128, 128)]
    assert canvases.canvases_for(data, {**small, "scales": (160,), "max_size": 0}, training=True) == [(192, 256)]


def test_the_largest_size_bounds_every_draw():
    options = {**OPTIONS, "scales": (48, 64, 80), "max_size": 100, "first_scales": (40, 56), "crop_range": (24, 56)}
    data = set_of_sizes((60, 70), (90, 30), (64, 64))
    height, width = canvases.largest_size(data, options, training=True)
    for seed in range(2000):
        size = tuple(data.sizes[seed % 3].tolist())
        found = transforms.train_size(size, canvases.draw(seed, (), 0, size, options), options)
        assert found[0] <= height and found[1] <= width


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"canvases": ((832, 1340),)}, r"config.augment.canvases has \(832, 1340\): a canvas is .* multiples of 64"),
        ({"canvases": ((832,),)}, r"multiples of 64"),
        ({"canvases": ((832, 1344),)}, r"none that holds 1\d\d\d x 1\d\d\d pixels, .*: add \(1\d\d\d, 1\d\d\d\)"),
    ],
)
def test_unfit_canvases_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        canvases.canvases_for(set_of_sizes((480, 640), (640, 480)), {**OPTIONS, **changes}, training=True)


def test_an_elongated_image_is_refused_with_its_name():
    with pytest.raises(UserError, match=r"1\.jpg: 3000 x 20 pixels are too small or too elongated"):
        canvases.canvases_for(set_of_sizes((480, 640), (20, 3000)), OPTIONS, training=False)
