"""Tests Swin with detection tokens: windows, shifts, merging, stochastic depth."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.models.detection import swin
from cdl_jax.models.detection.masks import full_extents

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


def test_windows_are_rows_of_patches():
    x = jnp.arange(24).reshape(1, 4, 6, 1)
    windows = swin.to_windows(x, 2)
    assert windows.shape == (1, 6, 4, 1)
    assert windows[0, 1, :, 0].tolist() == [2, 3, 8, 9]
    np.testing.assert_array_equal(swin.from_windows(windows, 2, (4, 6)), x)


def test_relative_positions_equal_a_loop():
    window = 3
    table = swin.relative_positions(window)
    for query in range(9):
        for key in range(9):
            (ya, xa), (yb, xb) = divmod(query, 3), divmod(key, 3)
            assert table[query, key] == (ya - yb + 2) * 5 + (xa - xb + 2)


def shift_mask_of_slices(height, width, window):
    """Swin's mask: regions are slices of the rolled map."""
    shift, regions, number = window // 2, np.zeros((height, width)), 0
    slices = slice(0, -window), slice(-window, -shift), slice(-shift, None)
    for rows in slices:
        for columns in slices:
            regions[rows, columns] = number
            number += 1
    flat = regions.reshape(height // window, window, width // window, window).swapaxes(1, 2).reshape(-1, window**2)
    return np.where(flat[:, :, None] == flat[:, None], 0, -100)


@pytest.mark.parametrize(("height", "width", "window"), [(14, 21, 7), (7, 14, 7), (8, 8, 4)])
def test_shift_mask_equals_slices(height, width, window):
    regions = swin.shift_regions(jnp.array([[height, width]]), (height, width), window)
    np.testing.assert_array_equal(swin.shift_mask(regions)[0], shift_mask_of_slices(height, width, window))


def test_merging_concatenates_channels_by_column_then_row():
    patches, tokens = jnp.arange(6.0).reshape(1, 2, 3, 1), jnp.full((1, 1, 1), 7.0)
    merging = swin.Merging(2)
    inside = jnp.ones((1, 2, 3), bool)
    params = merging.init(jax.random.key(0), patches, tokens, inside)["params"]
    kernel, norm = params["reduction"]["kernel"], params["norm"]
    merged, merged_tokens = merging.apply({"params": params}, patches, tokens, inside)

    def expected(channels):
        channels = np.float32(channels)
        x = (channels - channels.mean()) / np.sqrt(channels.var() + 1e-5) * norm["scale"] + norm["bias"]
        return x @ kernel

    np.testing.assert_allclose(merged[0, 0], [expected([0, 3, 1, 4]), expected([2, 5, 0, 0])], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(merged_tokens[0, 0], [0, 0], atol=1e-6)  # four equal channels


def backbone(**changes):
    sizes = {"embed_dim": 4, "depths": (1, 2, 1, 1), "heads": (1, 1, 2, 2), "window": 4, "mlp_ratio": 2.0}
    return swin.Swin(**{**sizes, "tokens": 3, "position_dim": 8, "merged_width": 32, **changes})


def test_shapes_of_the_outputs():
    images = jnp.zeros((2, 72, 60, 3))
    model = backbone()
    variables = jax.eval_shape(model.init, jax.random.key(0), images, full_extents(images.shape))
    maps, tokens, positions = jax.eval_shape(model.apply, variables, images, full_extents(images.shape))
    assert [x.shape for x in maps] == [(2, 9, 8, 8), (2, 5, 4, 16), (2, 3, 2, 32), (2, 2, 1, 32)]
    assert tokens.shape == (2, 3, 32) and positions.shape == (1, 3, 8)


def test_rates_of_stochastic_depth_grow_over_all_blocks():
    np.testing.assert_allclose(swin.drop_path_rates(0.3, 7), np.linspace(0, 0.3, 7), rtol=1e-6)
    assert swin.drop_path_rates(0.3, 1) == (0.0,)


def test_a_dropped_branch_is_that_of_all_patches_and_tokens_of_an_image():
    images, rate = 64, 0.5
    block = swin.Block(heads=1, window=2, shifted=False, drop_path=rate)
    patches, tokens, positions = normal(images, 2, 2, 4), normal(images, 3, 4), normal(1, 3, 4)
    extents, inside = jnp.full((images, 2), 2), jnp.ones((images, 2, 2), bool)
    inputs = (patches, tokens, positions, extents, inside, None)
    variables = block.init(jax.random.key(0), *inputs, False)
    # The MLP gives 0, so that only the first branch counts.
    variables["params"]["mlp"]["fc2"] = jax.tree.map(jnp.zeros_like, variables["params"]["mlp"]["fc2"])
    all_patches, all_tokens = block.apply(variables, *inputs, False)
    some_patches, some_tokens = block.apply(variables, *inputs, True, rngs={"dropout": jax.random.key(1)})
    dropped = np.array([np.array_equal(some_tokens[i], tokens[i]) for i in range(images)])
    assert 15 < dropped.sum() < 49
    for i in range(images):
        factor = 0 if dropped[i] else 1 / rate
        np.testing.assert_allclose(some_patches[i] - patches[i], factor * (all_patches[i] - patches[i]), atol=1e-5)
        np.testing.assert_allclose(some_tokens[i] - tokens[i], factor * (all_tokens[i] - tokens[i]), atol=1e-5)


@pytest.mark.parametrize("is_cross", [True, False])
def test_tokens_attend_to_patches_only_in_cross_stages(is_cross):
    patches, tokens, positions = normal(1, 4, 6, 4), normal(1, 3, 4), normal(1, 3, 4)
    inside = jnp.zeros((1, 4, 6), bool).at[:, :, :5].set(True)
    mask = (~inside).at[:, 3].set(True) if is_cross else None  # row 3 is padding, column 5 is outside
    stage = swin.Stage(1, 2, 2.0, (0.0,), 0)
    inputs = (tokens, positions, jnp.array([[4, 5]]), inside, mask)
    params = stage.init(jax.random.key(0), patches, *inputs)

    def tokens_of(patches):
        return stage.apply(params, patches, *inputs)[0][1]

    expected, changed = tokens_of(patches), patches + 1
    changed[:, 0, 0, 0] += 3
    assert np.any(tokens_of(changed) != expected) == is_cross
    outside = patches.copy()
    outside[:, :, 5] = 9.0
    np.testing.assert_array_equal(tokens_of(outside), expected)
    padding = patches.copy()
    padding[:, 3] = 9 * normal(6, 4)
    np.testing.assert_allclose(tokens_of(padding), expected, rtol=1e-5, atol=1e-6)


def test_recomputed_blocks_have_the_same_gradients():
    patches, tokens, positions = normal(1, 4, 4, 4), normal(1, 3, 4), normal(1, 3, 4)
    inputs = (patches, tokens, positions, jnp.full((1, 2), 4), jnp.ones((1, 4, 4), bool))

    def gradient(remat):
        stage = swin.Stage(1, 2, 2.0, (0.0, 0.0), 0, remat=remat)
        params = stage.init(jax.random.key(0), *inputs)
        return jax.jit(jax.grad(lambda params: stage.apply(params, *inputs)[0][0].sum()))(params)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), gradient(True), gradient(False))
