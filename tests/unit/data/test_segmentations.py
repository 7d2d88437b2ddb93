"""Segmentations: each form by hand and by pycocotools, the label map, and damage."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from cdl_jax.data.detection import segmentations
from cdl_jax.data.detection.segmentations import DamagedError

SIZE = (6, 5)  # height, width
SQUARE = np.zeros(SIZE, bool)
SQUARE[2:5, 1:3] = True
# Column by column: 6 + 2 pixels, 3 of the square, 3, 3 of the square, and 1 + 12.
COUNTS = [8, 3, 3, 3, 13]


def pixels(segmentation, size=SIZE):
    return segmentations.decode(segmentations.encode(segmentations.pack(segmentation), size), size)


def compressed(mask):
    return coco_mask.encode(np.asfortranarray(mask, np.uint8))["counts"].decode()


def test_polygons_and_run_lengths_of_a_square_are_its_pixels():
    forms = (
        [[1, 2, 3, 2, 3, 5, 1, 5]],
        [[1.0, 2.0, 3.0, 2.0, 3.0, 4.0, 1.0, 4.0], [1, 4, 3, 4, 3, 5, 1, 5]],
        {"size": [6, 5], "counts": COUNTS},
        {"size": [6, 5], "counts": compressed(SQUARE)},
    )
    for form in forms:
        assert np.array_equal(pixels(form), SQUARE), form


def test_polygons_of_any_shape_are_those_of_pycocotools():
    rng = np.random.default_rng(0)
    for _ in range(20):
        polygons = [rng.uniform(-20, 80, 2 * rng.integers(3, 9)).tolist() for _ in range(rng.integers(1, 4))]
        parts = coco_mask.decode(coco_mask.frPyObjects(polygons, 50, 60)).any(axis=2)
        assert np.array_equal(pixels(polygons, (50, 60)), parts)


def test_compressed_run_lengths_are_read_as_they_were_written():
    rng = np.random.default_rng(1)
    for share in (0.0, 0.01, 0.4, 0.99, 1.0):
        for repeat in (1, 37):
            mask = (rng.uniform(size=(23, 31)) < share).repeat(repeat, axis=0)
            column = mask.T.ravel()
            ends = np.append(np.flatnonzero(column[1:] != column[:-1]) + 1, len(column))
            expected = np.diff(ends, prepend=0) if not column[0] else np.append(0, np.diff(ends, prepend=0))
            text = compressed(mask)
            assert segmentations.run_lengths(text.encode()).tolist() == expected.tolist()
            assert np.array_equal(pixels({"size": [*mask.shape], "counts": text}, mask.shape), mask)


def test_the_earlier_object_has_the_pixels_that_two_cover():
    rng = np.random.default_rng(2)
    masks, labels = rng.uniform(size=(4, 7, 9)) < 0.4, np.array([9, 300, 9, 2])
    expected = [[next((int(c) for m, c in zip(masks, labels, strict=True) if m[i, j]), 0) for j in range(9)]
                for i in range(7)]  # fmt: skip
    found = segmentations.label_map(masks, labels, (7, 9), np.uint16)
    assert found.dtype == np.uint16 and found.tolist() == expected
    assert not segmentations.label_map([], np.zeros(0, int), (7, 9)).any()


DAMAGED = {
    "text": ("1 2 3", "must be polygons or run lengths, not '1 2 3'"),
    "flat list": ([1, 2, 3, 2, 3, 5], "lists of numbers, but has 1"),
    "text in a polygon": ([[1, 2, 3, 2, 3, "5"]], "lists of numbers, but has [1, 2, 3, 2, 3, '5']"),
    "huge number": ([[1, 2, 3, 2, 3, 10**400]], "lists of numbers, but has [1, 2"),
    "box": ([[1, 2, 3, 4]], "a polygon of 4 numbers: x and y of 3 corners or more"),
    "odd": ([[1, 2, 3, 2, 3, 5, 1]], "a polygon of 7 numbers"),
    "no polygon": ([], "has no polygon"),
    "NaN": ([[1, 2, 3, 2, 3, float("nan")]], "a corner at nan"),
    "far outside": ([[1, 2, 3, 2, 3, 13]], "a corner at 13, far outside"),
    "another size": ({"size": [5, 6], "counts": COUNTS}, "has the size [5, 6], and the image [6, 5]"),
    "no size": ({"counts": COUNTS}, "has the size None"),
    "no counts": ({"size": [6, 5]}, "must have counts"),
    "fractions": ({"size": [6, 5], "counts": [8.0, 22]}, "counts that are no integers"),
    "too few pixels": ({"size": [6, 5], "counts": COUNTS[:-1]}, "has counts of 17 pixels, and the image has 30"),
    "too many pixels": ({"size": [6, 5], "counts": [8, 300]}, "has counts of 308 pixels"),
    "negative": ({"size": [6, 5], "counts": [40, -10]}, "has counts of 30 pixels"),
    "empty text": ({"size": [6, 5], "counts": ""}, "no compressed run lengths"),
    "cut text": ({"size": [6, 5], "counts": compressed(SQUARE)[:-1]}, "has counts of 17 pixels"),
    "text within a number": ({"size": [6, 5], "counts": "8X"}, "no compressed run lengths"),
    "other characters": ({"size": [6, 5], "counts": "8 3"}, "no compressed run lengths"),
    "no ASCII": ({"size": [6, 5], "counts": "8é"}, "must have counts, a list of integers or compressed text"),
    "endless number": ({"size": [6, 5], "counts": "P" * 30 + "0"}, "no compressed run lengths"),
}


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_segmentations_are_refused(name):
    segmentation, message = DAMAGED[name]
    with pytest.raises(DamagedError) as caught:
        pixels(segmentation)
    assert message in str(caught.value)
