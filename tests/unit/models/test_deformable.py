"""Compares deformable attention with SciPy's interpolation in JAX.

The two implementations of deformable attention are compared with each other too.
"""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.ndimage import map_coordinates

from cdl_jax.models.detection.deformable import (
    MOST_DENSE_POSITIONS,
    DeformableAttention,
    choose_implementation,
    offset_bias,
    sample_maps,
    sampling_locations,
)

SHAPES, BATCH, QUERIES, HEADS, POINTS, CHANNELS = ((5, 7), (3, 2)), 2, 4, 2, 3, 3
RNG = np.random.default_rng(0)
MAPS = [RNG.normal(size=(BATCH, *shape, HEADS, CHANNELS)).astype(np.float32) for shape in SHAPES]
# Some locations lie outside the maps.
LOCATIONS = RNG.uniform(-0.3, 1.3, (BATCH, QUERIES, HEADS, len(SHAPES), POINTS, 2)).astype(np.float32)
WEIGHTS = RNG.uniform(size=LOCATIONS.shape[:-1]).astype(np.float32)
COTANGENT = RNG.normal(size=(BATCH, QUERIES, HEADS * CHANNELS)).astype(np.float32)


def sample_by_scipy(maps, locations, weights):
    """Samples one point and one channel at a time."""

    def sample(image, location):
        height, width = image.shape
        pixel = jnp.stack([location[1] * height - 0.5, location[0] * width - 0.5])
        return map_coordinates(image, pixel[:, None], order=1, mode="constant")[0]

    channels = jax.vmap(sample, (-1, None))  # one location, all channels
    points = jax.vmap(channels, (None, 0))
    heads = jax.vmap(jax.vmap(points, (None, 0)), (2, 1), 1)  # of queries, of heads
    total = 0
    for level, value in enumerate(maps):
        sampled = jax.vmap(heads)(value, locations[:, :, :, level])  # [batch, queries, heads, points, channels]
        total = total + (sampled * weights[:, :, :, level, :, None]).sum(axis=3)
    return total.reshape(*total.shape[:2], -1)


def value_and_gradients(function):
    def value(*inputs):
        y = function(*inputs)
        return (COTANGENT * y).sum(), y

    compute = jax.jit(jax.value_and_grad(value, argnums=(0, 1, 2), has_aux=True))
    (_, y), gradients = compute(MAPS, LOCATIONS, WEIGHTS)
    return y, gradients


@pytest.mark.parametrize("implementation", ["gather", "dense"])
def test_samples_and_gradients_equal_scipy(implementation):
    expected, of_scipy = value_and_gradients(sample_by_scipy)
    y, gradients = value_and_gradients(
        lambda maps, locations, weights: sample_maps(maps, locations, weights, implementation=implementation)
    )
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), gradients, of_scipy)


def test_implementations_have_equal_gradients_at_the_center_of_a_position():
    location = jnp.full((1, 1, 1, 1, 1, 2), 0.5)  # of a map of 3 x 3: position (1, 1)
    value = jnp.arange(9.0).reshape(1, 3, 3, 1, 1)

    def gradient(implementation):
        return jax.grad(lambda x: sample_maps([value], x, jnp.ones((1,) * 5), implementation=implementation).sum())(
            location
        )

    # One position to the right: + 1; one below: + 3; times 3 positions.
    np.testing.assert_allclose(gradient("gather").ravel(), [3, 9])
    np.testing.assert_array_equal(gradient("gather"), gradient("dense"))


@pytest.mark.parametrize("implementation", ["gather", "dense"])
def test_a_larger_canvas_changes_nothing(implementation):
    extents = jnp.tile(jnp.array(SHAPES)[None], (BATCH, 1, 1))
    larger = [np.pad(x, ((0, 0), (0, 3), (0, 2), (0, 0), (0, 0))) for x in MAPS]
    expected = sample_maps(MAPS, LOCATIONS, WEIGHTS, implementation=implementation)
    y = sample_maps(larger, LOCATIONS, WEIGHTS, extents, implementation)
    np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-6)


def test_small_maps_are_dense():
    assert choose_implementation("auto", MOST_DENSE_POSITIONS) == "dense"
    assert choose_implementation("auto", MOST_DENSE_POSITIONS + 1) == "gather"
    assert choose_implementation("gather", 1) == "gather"


def test_locations_of_points_and_boxes():
    offsets = jnp.full((1, 1, 1, 1, 2, 2), 3.0)  # 2 points
    extents = jnp.array([[[4, 6]]])
    from_point = sampling_locations(jnp.array([[[[0.5, 0.25]]]]), offsets, extents)
    np.testing.assert_allclose(from_point[0, 0, 0, 0], [[1.0, 1.0]] * 2)  # 0.5 + 3/6, 0.25 + 3/4
    from_box = sampling_locations(jnp.array([[[[0.5, 0.25, 0.4, 0.2]]]]), offsets, extents)
    np.testing.assert_allclose(from_box[0, 0, 0, 0], [[0.8, 0.4]] * 2)  # 0.5 + 3/2 * 0.4 / 2, 0.25 + 3/2 * 0.2 / 2


def test_first_offsets_point_away_in_all_directions():
    bias = offset_bias(8, 2, 3).reshape(8, 2, 3, 2)
    np.testing.assert_allclose(bias[1, :, 0], [[1, 1]] * 2, rtol=1e-6)
    np.testing.assert_allclose(bias[6, :, 2], [[0, -3]] * 2, atol=1e-6)


def test_masked_positions_are_not_sampled():
    dim = HEADS * CHANNELS * 2
    module = DeformableAttention(HEADS, POINTS)
    query = RNG.normal(size=(BATCH, QUERIES, dim)).astype(np.float32)
    maps = [RNG.normal(size=(BATCH, *shape, dim)).astype(np.float32) for shape in SHAPES]
    masks = [RNG.random((BATCH, *shape)) < 0.4 for shape in SHAPES]
    references = RNG.random((BATCH, QUERIES, len(SHAPES), 2)).astype(np.float32)
    variables = module.init(jax.random.key(0), query, references, maps, masks)
    changed = [np.where(mask[..., None], 9.0, x).astype(np.float32) for x, mask in zip(maps, masks, strict=True)]
    y = module.apply(variables, query, references, maps, masks)
    np.testing.assert_array_equal(module.apply(variables, query, references, changed, masks), y)
    unmasked = module.apply(variables, query, references, maps, [np.zeros_like(mask) for mask in masks])
    assert np.abs(unmasked - y).max() > 1e-3
