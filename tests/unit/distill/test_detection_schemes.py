"""Distillation of a detector's tokens: NumPy, extents, groups, unlike detectors."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from cdl_jax.distill.base import NetworkSpec
from cdl_jax.distill.detection import projected_tokens, token_matching
from cdl_jax.errors import UserError
from cdl_jax.models.modules import feature_norms, orthogonal
from cdl_jax.options import check, defaults

IMAGES, DIM, QUERIES, LEVELS = 4, 6, 5, 3
EXTENTS = np.array([[[40, 24], [40, 24]], [[24, 48], [24, 48]]])  # two groups of two images
STRIDES = (8, 16, 32, 64)
SIZES = [[-(-side // stride) for side in (40, 48)] for stride in STRIDES]  # of the canvas
SCHEMES = {"projected_tokens": projected_tokens, "token_matching": token_matching}
BOTH = pytest.mark.parametrize("name", SCHEMES)


def detector(seed, dim=DIM, images=IMAGES, sizes=SIZES):
    rng = np.random.default_rng(seed)

    def draw(*shape):
        return jnp.float32(rng.normal(0, 1, shape) + rng.normal(0, 1, shape[-1]))

    return {
        "patch_maps": tuple(draw(images, *size, dim) for size in sizes),
        "body_tokens": draw(images, QUERIES, dim),
        "neck_tokens": draw(LEVELS, images, QUERIES, dim),
    }


def spec(outputs):
    shapes = {name: outputs[name].shape for name in ("body_tokens", "neck_tokens")}
    return NetworkSpec(outputs["body_tokens"].shape[-1], 0, 0, 0, 1, None, None, outputs=shapes)


def build(name, teacher, student, **changes):
    options = ConfigDict(defaults(SCHEMES[name].OPTIONS, **changes))
    if not changes.get("projector", name == "token_matching"):
        options.projector = "cayley"  # compiled in a tenth of the time of the default map
    scheme = SCHEMES[name].build(options, spec(teacher), spec(student))
    return scheme, jax.jit(scheme.init)(jax.random.key(0))


def loss_of(scheme, variables, student, teacher, extents):
    return _loss(scheme, variables, with_inside(student, extents), teacher)


@partial(jax.jit, static_argnums=0)
def _loss(scheme, variables, student, teacher):
    return scheme.loss(variables, student, teacher, None, None)


@partial(jax.jit, static_argnums=0)
@partial(jax.grad, argnums=2)
def _gradient(scheme, variables, student, inside, teacher):
    return _loss(scheme, variables, {**student, "inside": inside}, teacher)[0]


def gradient_of(scheme, variables, student, teacher, extents):
    return _gradient(scheme, variables, student, with_inside(student, extents)["inside"], teacher)


def images_of(outputs, part):
    return {
        "patch_maps": tuple(values[part] for values in outputs["patch_maps"]),
        "body_tokens": outputs["body_tokens"][part],
        "neck_tokens": outputs["neck_tokens"][:, part],
    }


def with_inside(outputs, extents):
    """The student's outputs with the positions within the extents."""
    inside = []
    for values, stride in zip(outputs["patch_maps"], STRIDES, strict=True):
        of_map = -(-extents // stride)
        rows, columns = (np.arange(values.shape[1 + axis]) < of_map[..., axis, None] for axis in (0, 1))
        inside.append(rows[..., :, None] & columns[..., None, :])
    return {**outputs, "inside": tuple(inside)}


def cut(outputs, extent):
    """The outputs with maps of the size of the extent."""
    maps = (
        values[:, : -(-extent[0] // stride), : -(-extent[1] // stride)]
        for values, stride in zip(outputs["patch_maps"], STRIDES, strict=True)
    )
    return {**outputs, "patch_maps": tuple(maps)}


STUDENT, TEACHER = detector(0), detector(1)


def standardized(rows):
    rows = np.asarray(rows, np.float64).reshape(-1, rows.shape[-1])
    deviation = rows.std(axis=0, ddof=1)
    return (rows - rows.mean(axis=0)) / np.where(deviation > 0, deviation, 1)


def smooth_l1(x):
    x = np.abs(x)
    return np.where(x < 1, x**2 / 2, x - 0.5).mean()


def test_the_projected_loss_of_a_group_against_numpy():
    scheme, variables = build("projected_tokens", TEACHER, STUDENT, weight=3.0, projector="matrix_exp")
    student, teacher = (cut(images_of(outputs, slice(2)), (40, 24)) for outputs in (STUDENT, TEACHER))
    names = [f"patch_projector_{level}" for level in range(1, 5)] + ["body_det_projector", "neck_det_projector"]
    rows = [*zip(student["patch_maps"], teacher["patch_maps"], strict=True)]
    rows += [(student[name], teacher[name]) for name in ("body_tokens", "neck_tokens")]
    # At the start the projection is its base.
    expected = sum(
        smooth_l1(standardized(x @ variables["state"][name]["projector"]["base"].T) - standardized(y))
        for name, (x, y) in zip(names, rows, strict=True)
    )
    student, teacher = (images_of(outputs, slice(2)) for outputs in (STUDENT, TEACHER))
    value, terms = loss_of(scheme, variables, student, teacher, EXTENTS[:1])
    assert value == pytest.approx(3 * expected, rel=1e-4)
    assert terms["loss_distil"] == pytest.approx(expected, rel=1e-4)


def test_token_matching_of_a_group_against_numpy():
    student, teacher = (cut(images_of(outputs, slice(2)), (40, 24)) for outputs in (STUDENT, TEACHER))

    def mean_norm(x, y):
        return np.linalg.norm(np.asarray(x - y, np.float64), axis=-1).mean()

    expected = sum(map(mean_norm, student["patch_maps"], teacher["patch_maps"]))
    expected += mean_norm(student["body_tokens"], teacher["body_tokens"])
    expected += LEVELS * mean_norm(student["neck_tokens"], teacher["neck_tokens"])
    student, teacher = (images_of(outputs, slice(2)) for outputs in (STUDENT, TEACHER))
    scheme, variables = build("token_matching", TEACHER, STUDENT)
    value, terms = loss_of(scheme, variables, student, teacher, EXTENTS[:1])
    assert value == pytest.approx(4 * np.sqrt(expected), rel=1e-5)
    assert terms["loss_distil"] == pytest.approx(np.sqrt(expected), rel=1e-5)


@BOTH
def test_the_canvas_and_what_lies_outside_the_extent_have_no_effect(name):
    scheme, variables = build(name, TEACHER, STUDENT)
    student, teacher = (images_of(outputs, slice(2, 4)) for outputs in (STUDENT, TEACHER))
    plain = loss_of(scheme, variables, *(cut(outputs, (24, 48)) for outputs in (student, teacher)), EXTENTS[1:])
    canvas = loss_of(scheme, variables, student, teacher, EXTENTS[1:])
    assert canvas[0] == pytest.approx(float(plain[0]), rel=1e-5)
    gradients = gradient_of(scheme, variables, student, teacher, EXTENTS[1:])
    assert gradients["patch_maps"][0][:, :3].any() and not gradients["patch_maps"][0][:, 3:].any()


@BOTH
def test_the_loss_is_the_mean_over_groups(name):
    scheme, variables = build(name, TEACHER, STUDENT)
    parts = [
        loss_of(scheme, variables, images_of(STUDENT, part), images_of(TEACHER, part), EXTENTS[group : group + 1])[0]
        for group, part in enumerate((slice(2), slice(2, 4)))
    ]
    together = loss_of(scheme, variables, STUDENT, TEACHER, EXTENTS)[0]
    assert together == pytest.approx(float(sum(parts)) / 2, rel=1e-5)
    assert parts[0] != pytest.approx(float(parts[1]), rel=1e-3)


@BOTH
@pytest.mark.parametrize("term", ["patches", "body", "neck"])
def test_terms_can_be_switched_off(name, term):
    scheme, variables = build(name, TEACHER, STUDENT, **{term: False})
    gradients = gradient_of(scheme, variables, STUDENT, TEACHER, EXTENTS)
    outputs = {"patches": "patch_maps", "body": "body_tokens", "neck": "neck_tokens"}
    for kind, output in outputs.items():
        assert any(leaf.any() for leaf in jax.tree.leaves(gradients[output])) == (kind != term)
    kinds = {module.split("_")[0] for module in variables.get("params", ())}
    expected = {"patch", "body", "neck"} - {term.replace("patches", "patch")}
    assert kinds == (expected if name == "projected_tokens" else set())


def test_the_projection_is_orthogonal_also_between_different_widths():
    teacher = detector(2, dim=9)
    scheme, variables = build("projected_tokens", teacher, STUDENT)
    projectors = projected_tokens.TokenProjectors(9, "cayley")
    weight = projectors.apply(variables, {"body": jnp.eye(DIM)})["body"].T
    assert weight.shape == (9, DIM)
    assert orthogonal.orthogonality_error(weight) < 1e-5
    assert jnp.isfinite(loss_of(scheme, variables, STUDENT, teacher, EXTENTS)[0])


def test_constant_channels_and_equal_tokens_have_a_finite_gradient():
    constant = {**STUDENT, "body_tokens": jnp.ones_like(STUDENT["body_tokens"])}
    for name in SCHEMES:
        scheme, variables = build(name, constant, constant)
        gradients = jax.grad(lambda student, s=scheme, v=variables: loss_of(s, v, student, constant, EXTENTS)[0])(
            constant
        )
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(gradients))


def test_the_epsilon_joins_the_variance():
    x, counted = jnp.array([[1.0], [3.0], [100.0]]), jnp.array([True, True, False])
    assert feature_norms.batch_norm(x, 7.0, counted).ravel().tolist() == pytest.approx([-1 / 3, 1 / 3, 0])
    np.testing.assert_array_equal(feature_norms.batch_norm(x[:2], 7.0), feature_norms.batch_norm(x, 7.0, counted)[:2])
    scheme, variables = build("projected_tokens", TEACHER, STUDENT, epsilon=1e6)
    assert loss_of(scheme, variables, STUDENT, TEACHER, EXTENTS)[0] < 1e-3


def test_tokens_of_a_lower_precision_are_compared_in_float32():
    teacher = jax.tree.map(lambda x: x.astype(jnp.bfloat16), TEACHER)
    scheme, variables = build("projected_tokens", TEACHER, STUDENT)
    value = loss_of(scheme, variables, STUDENT, teacher, EXTENTS)[0]
    assert value.dtype == jnp.float32


def test_options_out_of_range_are_refused():
    for name, changes, message in (
        ("token_matching", {"weight": 0.0}, "distill.weight=0.0 must be above 0"),
        ("projected_tokens", {"epsilon": -1.0}, "distill.epsilon=-1.0 must not be negative"),
        ("projected_tokens", {"projector": "linear"}, "distill.projector='linear'"),
    ):
        with pytest.raises(UserError, match=message):
            check(SCHEMES[name].OPTIONS, changes, "distill")


@BOTH
def test_a_scheme_that_compares_nothing_is_refused(name):
    with pytest.raises(UserError, match="nothing is distilled"):
        build(name, TEACHER, STUDENT, patches=False, body=False, neck=False)


def test_detectors_whose_tokens_do_not_correspond_are_refused():
    fewer = {**TEACHER, "neck_tokens": TEACHER["neck_tokens"][1:]}
    with pytest.raises(UserError, match="the teacher has 2 prediction levels, the student 3"):
        build("projected_tokens", fewer, STUDENT)
    build("projected_tokens", fewer, STUDENT, neck=False)
    with pytest.raises(UserError, match="the teacher has 4 detection tokens, the student 5"):
        build("token_matching", {**TEACHER, "body_tokens": TEACHER["body_tokens"][:, 1:]}, STUDENT)
    with pytest.raises(UserError, match="width 9, the student's 6"):
        build("token_matching", detector(2, dim=9), STUDENT)
