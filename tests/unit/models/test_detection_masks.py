"""Compares extents, masks and positions with NumPy."""

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.models.detection import masks
from cdl_jax.models.detection.masks import Extents, nearest_index, rounded_quotient, sine_positions

SIZES = np.array([[48, 96], [80, 64], [33, 100]], np.int32)
EXTENTS = np.array([[80, 100]] * 3, np.int32)
BATCH = Extents(jnp.array(SIZES), jnp.array(EXTENTS))


def nearest(source, target):
    """Source positions of a resize, one at a time in float32."""
    scale = np.float32(source) / np.float32(target)
    return [min(int(np.floor(np.float32(np.float32(i) * scale))), source - 1) for i in range(target)]


def pixel_mask(size, extent):
    mask = np.ones(extent, bool)
    mask[: size[0], : size[1]] = False
    return mask


def resize(mask, shape):
    rows, columns = (nearest(*pair) for pair in zip(mask.shape, shape, strict=True))
    return mask[np.ix_(rows, columns)]


def test_nearest_index_equals_float32_of_numpy():
    for target in (3, 7, 13, 41, 83):
        sources = np.arange(1, 1400, 17)
        expected = [nearest(int(source), target) for source in sources]
        found = nearest_index(jnp.array(sources), jnp.full(len(sources), target), target)
        np.testing.assert_array_equal(found, expected)


def test_quotient_is_correct_when_the_division_is_not():
    """A GPU may return a neighbor of the correctly rounded quotient."""
    numerator = np.repeat(np.arange(1, 1400, 13), 40).astype(np.float32)
    denominator = np.tile(np.arange(1, 1400, 35), len(numerator) // 40).astype(np.float32)
    expected = numerator / denominator
    for direction in (0, np.inf):
        wrong = np.nextafter(np.nextafter(expected, np.float32(direction)), np.float32(direction))
        found = masks._closest_quotient(jnp.array(wrong), jnp.array(numerator), jnp.array(denominator))
        np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(rounded_quotient(jnp.array(numerator), jnp.array(denominator)), expected)


def test_masks_and_ratios_equal_a_resize_of_the_pixels():
    stride, canvas = 16, (8, 9)
    mask, ratios = BATCH.mask(stride, canvas), BATCH.valid_ratios(stride, canvas)
    assert mask.shape == (3, *canvas)
    for i, size in enumerate(SIZES):
        expected = resize(pixel_mask(size, EXTENTS[i]), (5, 7))
        np.testing.assert_array_equal(mask[i, :5, :7], expected)
        assert mask[i, 5:].all() and mask[i, :, 7:].all()
        np.testing.assert_allclose(ratios[i], [(~expected[0]).sum() / 7, (~expected[:, 0]).sum() / 5])
    np.testing.assert_array_equal(BATCH.inside(stride, canvas)[0].sum(axis=0), [5] * 7 + [0] * 2)


def test_mask_of_a_cross_stage_is_resized_twice():
    canvas = (4, 5)
    for divisor in (8, 4):
        mask = BATCH.cross_mask(32, canvas, divisor)
        for i, size in enumerate(SIZES):
            between = resize(pixel_mask(size, EXTENTS[i]), (20 // divisor, 25 // divisor))
            np.testing.assert_array_equal(mask[i, :3, :4], resize(between, (3, 4)))
            assert mask[i, 3:].all() and mask[i, :, 4:].all()


def test_one_mask_of_a_cross_stage_differs_from_that_of_one_resize():
    assert (BATCH.cross_mask(32, (3, 4), 8) != BATCH.mask(32, (3, 4))).any()


def test_sine_positions_equal_numpy():
    mask, dim = np.ones((1, 3, 4), bool), 8
    mask[0, :2, :3] = False
    positions = sine_positions(jnp.array(mask), dim)[0]
    for row in range(2):
        for column in range(3):
            for part, (value, last) in enumerate(((row + 1, 2), (column + 1, 3))):
                for i in range(dim // 2):
                    angle = 2 * np.pi * value / last / 10000 ** (2 * (i // 2) / (dim // 2))
                    expected = np.cos(angle) if i % 2 else np.sin(angle)
                    np.testing.assert_allclose(positions[row, column, part * dim // 2 + i], expected, atol=1e-5)


def test_positions_do_not_depend_on_the_canvas():
    mask = np.random.default_rng(0).random((2, 1, 1)) < 0.5
    mask = np.broadcast_to(mask, (2, 3, 4)).copy()
    mask[:, 2], mask[:, :, 3] = True, True
    larger = np.pad(mask, ((0, 0), (0, 2), (0, 3)), constant_values=True)
    np.testing.assert_array_equal(sine_positions(jnp.array(larger), 8)[:, :3, :4], sine_positions(jnp.array(mask), 8))


def test_sizes_are_data():
    traces = []

    @jax.jit
    def mask(sizes, extents):
        traces.append(1)
        return Extents(sizes, extents).mask(8, (16, 16))

    assert mask(SIZES, EXTENTS).shape == mask(SIZES // 2, EXTENTS - 16).shape
    assert len(traces) == 1
