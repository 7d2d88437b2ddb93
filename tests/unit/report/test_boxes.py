"""Boxes in images: their pixels, labels at the edges, boxes that exceed the image."""

import numpy as np
import pytest

from cdl_jax.report import boxes

RED = np.array([255, 0, 0])


def image(height=60, width=80):
    return np.full((height, width, 3), 90, np.uint8)


def has_color(drawn):
    return (drawn == RED).all(axis=2)


def test_the_outline_of_a_box_is_at_its_pixels():
    before = image()
    drawn = boxes.draw(before, np.array([[10.2, 20.0, 30.0, 15.4]]), [""], "#ff0000")
    rows, columns = np.nonzero(has_color(drawn))
    assert (columns.min(), columns.max(), rows.min(), rows.max()) == (10, 40, 20, 35)
    assert has_color(drawn).sum() == 2 * 31 + 2 * 14 and (before == 90).all()
    assert (drawn[21:35, 11:40] == 90).all()


def test_lines_are_thicker_in_large_images():
    drawn = boxes.draw(image(100, 1000), np.array([[100.0, 20.0, 300.0, 50.0]]), [""], "#ff0000")
    assert has_color(drawn)[40].sum() == 8  # 4 pixels on each side


@pytest.mark.parametrize(("x", "y"), [(5, 30), (5, 0), (70, 55), (-20, -20)])
def test_labels_stay_inside_the_image(x, y):
    plain, labeled = (
        boxes.draw(image(), np.array([[x, y, 8.0, 5.0]]), [label], "#ff0000") for label in ("", "cat 0.9")
    )
    changed = (plain != labeled).any(axis=2)
    assert changed.sum() > 300  # letters and their background: 12 pixels high
    assert ((labeled == 255).all(axis=2)).any()  # white letters on red


def test_a_label_on_a_bright_color_is_black():
    drawn = boxes.draw(image(), np.array([[5.0, 30.0, 30.0, 20.0]]), ["cat"], "#ffff00")
    assert (drawn == 0).all(axis=2).any() and not (drawn == 255).all(axis=2).any()


def test_no_box_changes_nothing():
    assert (boxes.draw(image(), np.zeros((0, 4)), []) == 90).all()
