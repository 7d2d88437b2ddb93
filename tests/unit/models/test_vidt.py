"""Tests sizes, options, initial values and the canvas form of ViDT."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from cdl_jax.errors import UserError
from cdl_jax.models.detection import state_dicts, vidt
from cdl_jax.options import check, defaults

SMALL = {
    "embed_dim": 4,
    "depths": (1, 2, 1, 1),
    "heads": (1, 1, 2, 2),
    "window": 4,
    "mlp_ratio": 2.0,
    "dim": 32,
    "decoder_heads": 4,
    "decoder_layers": 2,
    "points": 2,
    "hidden": 16,
    "queries": 3,
    "position_dim": 8,
}
CLASSES = 5
SIZES = jnp.array([[48, 80], [72, 64]])
EXTENTS = jnp.array([[72, 80]] * 2)
RNG = np.random.default_rng(0)
PIXELS = RNG.normal(size=(2, 72, 80, 3)).astype(np.float32)
PIXELS[0, 48:], PIXELS[1, :, 64:] = 0, 0


def build(**changes):
    return vidt.build(ConfigDict(defaults(vidt.OPTIONS, **{**SMALL, **changes})), CLASSES)


def on_canvas(height, width):
    return np.pad(PIXELS, ((0, 0), (0, height - 72), (0, width - 80), (0, 0)))


def init(model):
    return jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]


def spread(params, seed=0):
    """Adds noise to parameters, so that no output is constant."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: leaf + rng.normal(0, 0.1, leaf.shape).astype(np.float32), params)


def shapes(**options):
    model = vidt.build(ConfigDict(defaults(vidt.OPTIONS, **options)), 91)
    return jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 64, 64, 3)))["params"]


@pytest.mark.parametrize(
    ("name", "published"),
    [("vidt_nano", 15_728_677), ("vidt_tiny", 37_962_901), ("vidt_small", 60_465_061), ("vidt_base", 99_959_635)],
)
def test_number_of_parameters_is_published(name, published):
    params = shapes(**vidt.SIZES[name])
    unused = sum(int(np.prod(shape)) for shape in state_dicts.unused_shapes(params).values())
    assert sum(leaf.size for leaf in jax.tree.leaves(params)) + unused == published


@pytest.fixture(scope="module")
def refined():
    """Returns (model, parameters, compiled function of images, sizes and extents)."""
    model = build()
    params = spread(init(model))
    return model, params, jax.jit(lambda *inputs: model.apply({"params": params}, *inputs))


def test_outputs_and_gradients_do_not_depend_on_the_canvas():
    """Without refinement; tests/parity replays the other options on larger canvases."""
    model = build(box_refine=False, decoder_layers=1)
    params = spread(init(model))
    rng = np.random.default_rng(1)
    factors = {"logits": rng.normal(size=(2, 2, 3, CLASSES)), "boxes": rng.normal(size=(2, 2, 3, 4))}

    @jax.jit
    @partial(jax.value_and_grad, has_aux=True)
    def compute(params, images):
        out = model.apply({"params": params}, images, SIZES, EXTENTS)
        total = sum((jnp.float32(factor) * out[name]).sum() for name, factor in factors.items())
        # Maps as their sums, which are independent of the canvas.
        return total, (out["logits"], out["boxes"], out["body_tokens"], [x.sum((1, 2)) for x in out["patch_maps"]])

    (_, plain), of_plain = compute(params, PIXELS)
    (_, outputs), gradients = compute(params, on_canvas(101, 94))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), outputs, plain)
    scale = max(np.abs(leaf).max() for leaf in jax.tree.leaves(of_plain))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5 * scale), gradients, of_plain)
    assert np.abs(gradients["reference_points"]["kernel"]).max() > 1e-6


def test_the_extent_changes_the_outputs_and_compiles_nothing(refined):
    """The padding of the group takes part, as in the published program."""
    _, _, apply = refined
    logits = apply(PIXELS, SIZES, EXTENTS)["logits"]
    before = apply._cache_size()
    assert np.abs(apply(PIXELS, SIZES, EXTENTS - 8)["logits"] - logits).max() > 1e-4
    assert apply._cache_size() == before


def test_without_sizes_the_images_fill_the_canvas(refined):
    _, _, apply = refined
    full = jnp.array([[72, 80]] * 2)
    np.testing.assert_allclose(apply(PIXELS)["logits"], apply(PIXELS, full, full)["logits"], rtol=1e-5, atol=1e-6)


def test_heads_start_equal_except_for_the_size_of_the_first_boxes():
    heads = init(build(iou_aware=True))["heads"]
    assert sorted(heads) == sorted(f"{name}_embed_{k}" for name in ("class", "bbox", "iou") for k in range(3))
    for level in (1, 2):
        for name in ("class", "iou"):
            jax.tree.map(np.testing.assert_array_equal, heads[f"{name}_embed_0"], heads[f"{name}_embed_{level}"])
        first, other = (flatten_dict(heads[f"bbox_embed_{k}"], sep="/") for k in (0, level))
        for leaf in set(first) - {"layers_2/bias"}:
            np.testing.assert_array_equal(first[leaf], other[leaf])
        assert first["layers_2/bias"].tolist() == [0, 0, -2, -2] and not other["layers_2/bias"].any()
    np.testing.assert_allclose(heads["class_embed_0"]["bias"], -np.log(99), rtol=1e-6)
    assert np.abs(heads["class_embed_0"]["kernel"]).max() <= 32**-0.5
    different = heads["bbox_embed_0"]["layers_0"]["kernel"] != heads["bbox_embed_0"]["layers_1"]["kernel"]
    assert different.all()


def test_without_refinement_all_levels_share_one_head():
    params = init(build(box_refine=False))
    assert sorted(params["heads"]) == ["bbox_embed_0", "class_embed_0"]
    assert params["heads"]["bbox_embed_0"]["layers_2"]["bias"].tolist() == [0, 0, -2, -2]


def test_boxes_of_later_levels_do_not_move_the_first_points(refined):
    model, params, _ = refined

    @jax.jit
    @jax.grad
    def gradient(points):
        changed = {**params, "reference_points": points}
        return model.apply({"params": changed}, PIXELS, SIZES, EXTENTS)["boxes"][1:].sum()

    assert not any(leaf.any() for leaf in jax.tree.leaves(gradient(params["reference_points"])))


def test_dropout_acts_in_training_only(refined):
    model, params, apply = refined
    first, other = jax.jit(
        jax.vmap(lambda key: model.apply({"params": params}, PIXELS, SIZES, EXTENTS, train=True, rngs={"dropout": key}))
    )(jax.random.split(jax.random.key(0)))["neck_tokens"]
    evaluated = apply(PIXELS, SIZES, EXTENTS)["neck_tokens"]
    assert np.abs(first[1] - other[1]).max() > 1e-3 and np.abs(first[1] - evaluated[1]).max() > 1e-3
    np.testing.assert_allclose(first[0], evaluated[0], rtol=1e-4, atol=1e-5)  # no dropout in the backbone


def test_a_teacher_in_bfloat16_has_predictions_in_float32(refined):
    _, params, apply = refined
    expected = apply(PIXELS, SIZES, EXTENTS)
    out = jax.jit(build(dtype="bfloat16").apply)({"params": params}, PIXELS, SIZES, EXTENTS)
    assert {out[name].dtype for name in ("logits", "boxes", "points")} == {jnp.dtype("float32")}
    assert {x.dtype for x in (*out["patch_maps"], out["body_tokens"], out["neck_tokens"])} == {jnp.dtype("bfloat16")}
    np.testing.assert_allclose(out["boxes"], expected["boxes"], atol=0.05)
    np.testing.assert_allclose(out["logits"], expected["logits"], atol=0.2)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"heads": (3, 1, 2, 2)}, "cannot be split over heads"),
        ({"embed_dim": 5}, "must be even"),
        ({"dim": 40}, "32 groups"),
        ({"decoder_heads": 5}, "decoder_heads"),
        ({"neck": False, "iou_aware": True}, "iou_aware=True needs neck=True"),
    ],
)
def test_options_that_do_not_fit_together_are_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match=message) as error:
        build(**changes)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"depths": (1, 2, 1)}, "4 items"),
        ({"depths": (1, 0, 1, 1)}, "at least 1"),
        ({"window": 1}, "at least 2"),
        ({"cross_stages": (4,)}, "cross_stages"),
        ({"dropout": 1.0}, "lie in"),
        ({"decoder_layers": 0}, "at least 1"),
        ({"sampling": "fast"}, "'auto', 'gather' or 'dense'"),
    ],
)
def test_options_have_ranges(changes, message):
    with pytest.raises(UserError, match=message):
        check(vidt.OPTIONS, changes, "student")


def test_declared_options_have_meanings_and_valid_defaults():
    assert all(option.meaning and not option.problem(option.default) for option in vidt.OPTIONS.values())
    for name, size in vidt.SIZES.items():
        check(vidt.OPTIONS, size, name)
