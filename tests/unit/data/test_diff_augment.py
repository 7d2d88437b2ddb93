"""DiffAugment: each function by hand, ranges of random numbers, and the gradient."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.data.transforms import diff_augment
from cdl_jax.errors import UserError

ALL = "color,translation,cutout"


def test_translation_moves_the_image_up_by_the_row_number():
    image = np.arange(64, dtype=np.float32).reshape(8, 8, 1) + 1
    moved = diff_augment.translate(np.stack([image, image]), jnp.array([1, 0]), jnp.array([0, -1]))
    assert np.array_equal(moved[0, :7], image[1:]) and not moved[0, 7].any()
    assert np.array_equal(moved[1, :, 1:], image[:, :7]) and not moved[1, :, 0].any()


@pytest.mark.parametrize(("side", "rows", "columns"), [(8, (0, 3), (2, 6)), (9, (0, 4), (2, 7))])
def test_cutout_at_a_border_is_cut_off(side, rows, columns):
    cut = diff_augment.cut_out(jnp.ones((1, side, side, 3)), jnp.array([1]), jnp.array([4]))
    expected = np.ones((side, side))
    expected[slice(*rows), slice(*columns)] = 0
    assert np.array_equal(cut[0, :, :, 1], expected)


def test_colors_by_hand():
    image = jnp.array([[[[1.0, 3.0, 5.0], [0.0, 0.0, 3.0]]]])
    u = jnp.array([0.75])
    assert diff_augment.change_brightness(image, u)[0, 0, 0].tolist() == [1.25, 3.25, 5.25]
    assert diff_augment.change_saturation(image, u)[0, 0, 0].tolist() == [0.0, 3.0, 6.0]
    assert diff_augment.change_contrast(image, u)[0, 0, 1].tolist() == [-0.5, -0.5, 3.25]


def test_random_numbers_fill_their_ranges_and_have_keys_of_their_own():
    numbers = diff_augment.draw(jax.random.key(0), ALL, 2000, 32, 17)
    assert sorted(numbers) == sorted(name for names in diff_augment.PARTS.values() for name in names)
    ranges = {name: (int(x.min()), int(x.max())) for name, x in numbers.items() if x.dtype == jnp.int32}
    assert ranges == {
        "translation_rows": (-4, 4),
        "translation_columns": (-2, 2),
        "cutout_rows": (0, 32),
        "cutout_columns": (0, 16),
    }
    assert all(0 <= float(numbers[name].min()) < float(numbers[name].max()) < 1 for name in diff_augment.PARTS["color"])
    alone = diff_augment.draw(jax.random.key(0), "cutout", 2000, 32, 17)
    assert np.array_equal(alone["cutout_rows"], numbers["cutout_rows"]) and len(alone) == 2
    assert not np.array_equal(numbers["brightness"], numbers["contrast"])


def test_a_policy_is_applied_in_its_order():
    images = jax.random.uniform(jax.random.key(0), (3, 16, 16, 3))
    numbers = diff_augment.draw(jax.random.key(1), ALL, 3, 16, 16)
    by_hand = diff_augment.cut_out(images, numbers["cutout_rows"], numbers["cutout_columns"])
    by_hand = diff_augment.translate(by_hand, numbers["translation_rows"], numbers["translation_columns"])
    assert np.array_equal(diff_augment.augment(images, numbers, "cutout, translation"), by_hand)
    assert diff_augment.augment(images, {}, "") is images


def test_the_gradient_is_zero_where_pixels_are_cut():
    images = jnp.ones((1, 8, 8, 1))
    numbers = {"cutout_rows": jnp.array([4]), "cutout_columns": jnp.array([4])}
    gradient = jax.grad(lambda x: diff_augment.augment(x, numbers, "cutout").sum())(images)
    assert float(gradient.sum()) == 64 - 16


def test_an_unknown_part_is_refused():
    with pytest.raises(UserError, match="no part 'colors'; did you mean 'color'"):
        diff_augment.parse_policy("colors,cutout")
