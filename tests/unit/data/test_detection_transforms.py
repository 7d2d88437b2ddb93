"""Transforms of images with boxes: sizes, boxes, pixels and draws."""

import dataclasses

import numpy as np
import pytest
from PIL import Image

from cdl_jax.data.detection import transforms
from cdl_jax.data.detection.coco_files import Targets
from cdl_jax.data.detection.transforms import CropDraws, Draws
from cdl_jax.data.sampling import rng_for
from cdl_jax.errors import UserError
from cdl_jax.options import check, defaults

OPTIONS = defaults(transforms.OPTIONS)
SMALL = {**OPTIONS, "scales": (32, 48), "max_size": 80, "first_scales": (48, 64), "crop_range": (40, 60)}


def targets(*boxes):
    boxes = np.array(boxes, np.float32).reshape(-1, 4)
    return Targets(boxes, np.arange(1, len(boxes) + 1, dtype=np.int32), (boxes[:, 2:] - boxes[:, :2]).prod(axis=1))


@pytest.mark.parametrize(
    ("size", "short", "cap", "expected"),
    [
        ((480, 640), 800, 1333, (800, 1056)),  # 640 * 800 / 480 = 1066.7
        ((375, 1242), 800, 1333, (400, 1328)),  # short becomes round(1333 * 375 / 1242) = 402
        ((500, 333), 500, 0, (736, 496)),  # 500 * 500 / 333 = 750.8, and both are rounded down to multiples of 16
        ((427, 640), 427, 0, (416, 640)),  # the shorter side has that length: only rounded down
        ((100, 70), 0, 0, (96, 64)),  # the size of the file
        ((10, 25), 5, 13, (0, 0)),  # round(13 * 10 / 25) = 5
        ((64, 64), 48, 47, (32, 32)),  # round(47.0) = 47
        ((10, 20), 17, 33, (16, 32)),  # round(16.5) = 16, to even
    ],
)
def test_sizes(size, short, cap, expected):
    assert transforms.resized_size(size, short, cap) == expected


def test_evaluation_caps_the_longer_side_at_five_thirds_of_the_shorter():
    assert transforms.evaluation_size((300, 900), OPTIONS) == (432, 1328)  # round(1333 / 3) = 444
    assert transforms.evaluation_size((300, 900), {**OPTIONS, "eval_size": 480}) == (256, 784)  # cap 799, short 266
    assert transforms.evaluation_size((300, 900), {**OPTIONS, "eval_max_size": 600}) == (192, 592)
    assert transforms.evaluation_size((100, 70), {**OPTIONS, "eval_size": 0}) == (96, 64)


def test_a_flip_mirrors_pixels_and_boxes():
    pixels = np.arange(32 * 48 * 3, dtype=np.uint8).reshape(32, 48, 3)
    image, flipped = transforms.transform_train(
        Image.fromarray(pixels), targets([1, 2, 11, 30]), Draws(True, 32), {**SMALL, "max_size": 0}
    )
    assert np.array_equal(np.asarray(image), pixels[:, ::-1])
    assert flipped.boxes.tolist() == [[37, 2, 47, 30]] and flipped.labels.tolist() == [1]


def test_boxes_follow_each_axis_with_its_own_ratio():
    image, resized = transforms.transform_train(
        Image.new("RGB", (50, 40)), targets([10, 10, 20, 30]), Draws(False, 32), SMALL
    )
    assert image.size == (32, 32)  # 50 * 32 / 40 = 40, rounded down to 32
    np.testing.assert_allclose(resized.boxes, [[6.4, 8, 12.8, 24]], rtol=1e-6)
    np.testing.assert_allclose(resized.areas, [200 * 0.64 * 0.8], rtol=1e-6)


def test_a_crop_drops_boxes_without_extent():
    draws = Draws(False, 48, CropDraws(first_short_side=64, top=10, left=20, height=44, width=40))
    boxes = targets([0, 0, 20, 64], [10, 12, 30, 70], [19, 10, 60.5, 54], [70, 20, 80, 30])
    image, cropped = transforms.transform_train(Image.new("RGB", (96, 64)), boxes, draws, SMALL)
    # 44 x 40 becomes int(48 * 44 / 40) = 52 x 48, and that 48 x 48
    assert image.size == (48, 48) and cropped.labels.tolist() == [2, 3]
    ratios = np.array([48 / 40, 48 / 44, 48 / 40, 48 / 44])
    np.testing.assert_allclose(cropped.boxes, np.array([[0, 2, 10, 44], [0, 0, 40, 44]]) * ratios, rtol=1e-6)
    assert transforms.train_size((64, 96), draws, SMALL) == (48, 48)


def test_a_label_map_is_flipped_cropped_and_resized_as_its_image():
    """Blocks of 16 pixels have equal centers by nearest neighbor and Pillow's filter."""
    blocks = rng_for(1).integers(0, 200, (6, 8)).astype(np.uint8)
    labels = blocks.repeat(16, axis=0).repeat(16, axis=1)
    draws = Draws(True, 64, CropDraws(first_short_side=192, top=32, left=64, height=96, width=128))
    options = {**SMALL, "max_size": 0}
    found = transforms.transform_label_map(labels, draws, options)
    # Flipped, enlarged twice to blocks of 32 pixels, cropped to 3 x 4 of them, and reduced to 64 x 85, that is 64 x 80.
    image, _ = transforms.transform_train(Image.fromarray(labels).convert("RGB"), targets(), draws, options)
    assert found.shape == image.size[::-1] == (64, 80) and found.dtype == np.uint8
    cropped = blocks[:, ::-1][1:4, 2:6]
    centers = [(np.arange(count) + 0.5) / count * side for count, side in zip((3, 4), found.shape, strict=True)]
    rows, columns = (np.floor(places).astype(int) for places in centers)
    assert np.array_equal(found[rows[:, None], columns], cropped)
    assert np.array_equal(np.asarray(image)[rows[:, None], columns, 0], cropped)


def test_nearest_neighbors_round_positions_down():
    labels = np.arange(20, dtype=np.uint16)[None].repeat(16, axis=0)
    found = transforms.transform_label_map(labels, Draws(False, 32), {**SMALL, "max_size": 0})
    # 20 x 16 becomes 40 x 32, rounded down to 32 x 32.
    assert found.shape == (32, 32) and found[5].tolist() == [i * 20 // 32 for i in range(32)]


def test_the_objects_of_a_crop_keep_their_masks():
    draws = Draws(False, 48, CropDraws(first_short_side=64, top=10, left=20, height=44, width=40))
    boxes = targets([0, 0, 20, 64], [10, 12, 30, 70], [19, 10, 60.5, 54])
    with_masks = dataclasses.replace(boxes, masks=np.array([b"a", b"b", b"c"], object))
    _, cropped = transforms.transform_train(Image.new("RGB", (96, 64)), with_masks, draws, SMALL)
    assert cropped.labels.tolist() == [2, 3] and cropped.masks.tolist() == [b"b", b"c"]


def test_pixels_are_those_of_pillow():
    pixels = rng_for(0).integers(0, 256, (60, 90, 3), np.uint8)
    image, _ = transforms.transform_test(Image.fromarray(pixels), targets(), {**OPTIONS, "eval_size": 32})
    expected = Image.fromarray(pixels).resize((48, 32), Image.Resampling.BILINEAR)
    assert np.array_equal(np.asarray(image), np.asarray(expected))


def test_an_image_without_objects_stays_one():
    for draws in (Draws(True, 32), Draws(True, 32, CropDraws(48, 0, 0, 40, 44))):
        _, left = transforms.transform_train(Image.new("RGB", (70, 60)), targets(), draws, SMALL)
        assert left.boxes.shape == (0, 4) and left.labels.shape == (0,)
        assert transforms.relative_boxes(left.boxes, (32, 32)).shape == (0, 4)


def test_draws_follow_the_order_of_the_authors_code():
    """Compares with the draws written down one by one, from an equal generator."""
    branches = set()
    for seed in range(40):
        ours, rng = transforms.draw(rng_for(seed), (60, 90), SMALL), rng_for(seed)
        flip, plain = rng.random() < 0.5, rng.random() < 0.5
        assert ours.flip == flip and (ours.crop is None) == plain
        branches.add((bool(flip), bool(plain)))
        if not plain:
            first = rng.choice((48, 64))
            height, width = {48: (48, 64), 64: (64, 96)}[int(first)]  # 48 * 90 / 60 = 72, rounded down to 64
            crop_width = rng.integers(40, min(width, 60) + 1)
            crop_height = rng.integers(40, min(height, 60) + 1)
            top, left = rng.integers(0, height - crop_height + 1), rng.integers(0, width - crop_width + 1)
            assert ours.crop == CropDraws(first, top, left, crop_height, crop_width)
        assert ours.short_side == rng.choice((32, 48))
    assert len(branches) == 4


def test_every_draw_fits_its_image_at_the_real_settings():
    for seed, size in enumerate([(427, 640), (640, 427), (500, 500), (375, 1242), (30, 40)] * 40):
        draws = transforms.draw(rng_for(seed), size, OPTIONS)
        assert draws.short_side in OPTIONS["scales"]
        if draws.crop:
            height, width = transforms.resized_size(size, draws.crop.first_short_side)
            assert 384 <= draws.crop.height <= min(600, height) and 384 <= draws.crop.width <= min(600, width)
            assert 0 <= draws.crop.top <= height - draws.crop.height
            assert 0 <= draws.crop.left <= width - draws.crop.width


def test_probabilities_of_0_and_1_choose_one_branch():
    for flip in (0, 1):
        for crop in (0, 1):
            options = {**SMALL, "flip": flip, "crop": crop}
            draws = [transforms.draw(rng_for(seed), (60, 90), options) for seed in range(20)]
            assert {d.flip for d in draws} == {bool(flip)} and {d.crop is not None for d in draws} == {bool(crop)}


def test_without_scales_images_keep_their_size():
    draws = transforms.draw(rng_for(0), (100, 130), {**OPTIONS, "scales": (), "crop": 0})
    assert draws.short_side == 0
    assert transforms.train_size((100, 130), draws, OPTIONS) == (96, 128)


def test_padding_is_zero_after_normalization():
    images = np.full((2, 4, 6, 3), 128, np.uint8)
    values = np.asarray(transforms.normalize(images, np.array([[4, 6], [2, 3]]), OPTIONS))
    expected = (128 / 255 - np.array(OPTIONS["mean"])) / np.array(OPTIONS["std"])
    np.testing.assert_allclose(values[0], np.broadcast_to(expected, (4, 6, 3)), rtol=1e-5)
    np.testing.assert_allclose(values[1, :2, :3], np.broadcast_to(expected, (2, 3, 3)), rtol=1e-5)
    assert not values[1, 2:].any() and not values[1, :, 3:].any()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"flip": 1.5}, r"config.augment.flip=1.5 must lie in \[0, 1\]"),
        ({"crop": float("nan")}, "config.augment.crop=nan must be a number"),
        ({"scales": (480, 8)}, "config.augment.scales=.* must be at least 16"),
        ({"scales": (480.0,)}, "config.augment.scales=.* must be integers"),
        ({"max_size": -1}, "config.augment.max_size=-1 must not be negative"),
        ({"eval_size": 8}, "config.augment.eval_size=8 must be 0, or a side"),
        ({"std": (0.2, 0.2, 0)}, "config.augment.std=.* must be above 0"),
        ({"mean": (0.5, 0.5)}, "config.augment.mean=.* must have 3 items"),
        ({"first_scales": (390, 500)}, "gives images of 384 pixels, smaller than"),
        ({"first_scales": ()}, "config.augment.first_scales is empty"),
        ({"crop_range": (600, 384)}, "config.augment.crop_range=.* must be the smallest and the largest"),
    ],
)
def test_options_out_of_range_are_refused(changes, message):
    options = {**OPTIONS, "crop_range": (385, 600) if "first_scales" in changes else (384, 600), **changes}
    with pytest.raises(UserError, match=message):
        check(transforms.OPTIONS, options, "augment")
        transforms.check(options)


def test_the_defaults_are_in_range_and_crops_may_be_unused():
    transforms.check(OPTIONS)
    transforms.check({**OPTIONS, "crop": 0, "first_scales": ()})
