"""Set losses of a detector against NumPy: levels, groups of images, empty images."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from cdl_jax.errors import UserError
from cdl_jax.methods.shared import detection_losses as losses
from cdl_jax.options import check, defaults

LEVELS, IMAGES, QUERIES, TARGETS, CLASSES = 3, 4, 6, 3, 5
RNG = np.random.default_rng(3)
OUTPUTS = {
    "logits": np.float32(RNG.normal(0, 2, (LEVELS, IMAGES, QUERIES, CLASSES))),
    "boxes": np.float32(RNG.uniform(0.1, 0.9, (LEVELS, IMAGES, QUERIES, 4))),
}
IOU_LOGITS = np.float32(RNG.normal(0, 1, (LEVELS, IMAGES, QUERIES)))
VALID = np.array([[True, True, False], [True, False, True], [False] * 3, [True] * 3])
BATCH = {
    "boxes": np.where(
        VALID[..., None], np.float32(RNG.uniform(0.2, 0.8, (IMAGES, TARGETS, 4))), np.float32([0.5, 0.5, 1, 1])
    ),
    "labels": np.int32(RNG.integers(0, CLASSES, (IMAGES, TARGETS))),
    "valid": VALID,
}


def options(**changes):
    return ConfigDict(defaults(losses.OPTIONS, **changes))


def jitted(function, *inputs):
    """Returns the outputs of one program, as NumPy arrays."""
    return jax.device_get(jax.jit(function)(*inputs))


def loss_of(outputs=OUTPUTS, batch=BATCH, groups=1, solver="device", **changes):
    """Returns the loss and its terms."""
    changed = options(solver=solver, **changes)
    return jitted(lambda *inputs: losses.detection_loss(changed, *inputs, groups), outputs, batch)


def queries_of(changed):
    return jitted(lambda *inputs: losses.match_queries(changed, *inputs), OUTPUTS, BATCH)


def overlaps(box, other):
    """IoU and generalized IoU of two boxes."""
    (x0, y0, x1, y1), (u0, v0, u1, v1) = ((x - w / 2, y - h / 2, x + w / 2, y + h / 2) for x, y, w, h in
                                          (np.float64(box), np.float64(other)))  # fmt: skip
    inner = max(0, min(x1, u1) - max(x0, u0)) * max(0, min(y1, v1) - max(y0, v0))
    union = (x1 - x0) * (y1 - y0) + (u1 - u0) * (v1 - v0) - inner
    hull = (max(x1, u1) - min(x0, u0)) * (max(y1, v1) - min(y0, v0))
    return inner / union, inner / union - (hull - union) / hull


def sigmoid(x):
    return 1 / (1 + np.exp(-np.asarray(x, np.float64)))


def expected_level(level, queries, normalizer, alpha=0.25, gamma=2.0):
    """(class, L1, GIoU) losses of a level, pair by pair."""
    p = sigmoid(OUTPUTS["logits"][level])
    y = np.zeros_like(p)
    distance = giou = 0.0
    for i, j in zip(*VALID.nonzero(), strict=True):
        q = queries[level, i, j]
        y[i, q, BATCH["labels"][i, j]] = 1
        box, target = OUTPUTS["boxes"][level, i, q], BATCH["boxes"][i, j]
        distance += np.abs(np.float64(box) - target).sum()
        giou += 1 - overlaps(box, target)[1]
    p_t = np.where(y == 1, p, 1 - p)
    focal = -np.where(y == 1, alpha, 1 - alpha) * (1 - p_t) ** gamma * np.log(p_t)
    return focal.sum() / normalizer, distance / normalizer, giou / normalizer


def test_terms_and_total_are_the_published_formulas():
    queries = queries_of(options())
    total, terms = loss_of(solver="host")
    expected = np.array([expected_level(level, queries, normalizer=7) for level in range(LEVELS)])
    for column, name in enumerate(("loss_ce", "loss_bbox", "loss_giou")):
        found = [terms[f"{name}_0"], terms[f"{name}_1"], terms[name]]
        np.testing.assert_allclose(found, expected[:, column], rtol=1e-5)
    assert total == pytest.approx((expected @ [2, 5, 2]).sum(), rel=1e-5)


def test_only_the_last_level_counts_without_auxiliary_losses():
    total, terms = loss_of(auxiliary=False)
    last, _ = loss_of({name: array[-1:] for name, array in OUTPUTS.items()})
    assert total == pytest.approx(float(last), rel=1e-6)
    assert "loss_ce" in terms and "loss_ce_0" not in terms


def test_the_exponent_and_the_weight_of_the_focal_loss_are_options():
    changed = {"focal_alpha": 0.4, "focal_gamma": 1.5}
    queries = queries_of(options(**changed, solver="device"))
    expected, _, _ = expected_level(LEVELS - 1, queries, normalizer=7, alpha=0.4, gamma=1.5)
    assert loss_of(**changed)[1]["loss_ce"] == pytest.approx(expected, rel=1e-5)


def test_the_loss_is_the_mean_of_the_losses_of_groups_with_a_common_normalizer():
    # Two groups of two images, as two devices of the authors' code: each divides by max(1, 7 / 2).
    sums = [loss_of(*images_of(part))[0] * max(part_count, 1) for part, part_count in ((slice(2), 4), (slice(2, 4), 3))]
    expected = np.mean([value / 3.5 for value in sums])
    assert loss_of(groups=2)[0] == pytest.approx(expected, rel=1e-5)


def images_of(part):
    return {name: array[:, part] for name, array in OUTPUTS.items()}, {
        name: array[part] for name, array in BATCH.items()
    }


def test_a_batch_without_objects_learns_that_all_is_background():
    batch, device = {**BATCH, "valid": np.zeros_like(VALID)}, options(solver="device")
    (total, terms), gradients = jitted(
        jax.value_and_grad(lambda outputs: losses.detection_loss(device, outputs, batch, groups=2), has_aux=True),
        OUTPUTS,
    )
    p = sigmoid(OUTPUTS["logits"])
    assert total == pytest.approx(2 * (0.75 * p**2 * -np.log(1 - p)).sum() / 2, rel=1e-5)  # divided by two groups
    assert (terms["loss_bbox"], terms["loss_giou"], terms["class_error"]) == (0, 0, 100)
    assert not gradients["boxes"].any()
    assert (gradients["logits"] > 0).all()


@pytest.mark.parametrize("boxes_follow", [False, True])
def test_the_iou_aware_loss(boxes_follow):
    outputs = {**OUTPUTS, "iou_logits": IOU_LOGITS}
    changed = options(iou_target_gradient=boxes_follow, solver="device")
    queries = queries_of(changed)
    expected = 0.0
    for i, j in zip(*VALID.nonzero(), strict=True):
        q = queries[-1, i, j]
        iou, p = overlaps(OUTPUTS["boxes"][-1, i, q], BATCH["boxes"][i, j])[0], sigmoid(IOU_LOGITS[-1, i, q])
        expected -= (iou * np.log(p) + (1 - iou) * np.log(1 - p)) / 7

    def loss(boxes):
        return losses.level_losses(changed, {**outputs, "boxes": boxes}, BATCH, queries)["loss_iouaware"][-1]

    value, gradient = jitted(jax.value_and_grad(loss), OUTPUTS["boxes"])
    assert value == pytest.approx(expected, rel=1e-5)
    assert gradient.any() == boxes_follow


def test_class_error_counts_matched_queries_alone():
    logits = jnp.array([[[9.0, 0.0], [0.0, 9.0], [0.0, 9.0]]])
    queries, labels = jnp.array([[0, 2, -1]]), jnp.array([[0, 0, 0]])
    assert losses.class_error(logits, labels, queries) == pytest.approx(50)


def test_cardinality_error_counts_queries_whose_last_class_is_not_the_largest():
    logits = jnp.array([[[[9.0, 0.0], [0.0, 9.0], [0.0, 9.0]], [[9.0, 0.0], [9.0, 0.0], [9.0, 0.0]]]])
    valid = jnp.array([[True, True, True], [True, True, False]])
    assert losses.cardinality_error(logits, valid).tolist() == [(2 + 1) / 2]


def test_softmax_loss_is_the_weighted_mean_of_each_group():
    logits = jnp.log(jnp.array([[[[1.0, 3.0, 4.0], [2.0, 5.0, 1.0]], [[1.0, 1.0, 2.0], [6.0, 1.0, 1.0]]]]))
    labels = jnp.array([[[1, 3], [3, 0]]])  # 3: no target, so the background, class 2
    first = (-np.log(3 / 8) - 0.1 * np.log(1 / 8)) / 1.1
    second = (-0.1 * np.log(2 / 4) - np.log(6 / 8)) / 1.1
    assert losses.softmax_loss(logits, labels, 0.1, groups=2)[0] == pytest.approx((first + second) / 2, rel=1e-5)
    together = (1.1 * first + 1.1 * second) / 2.2
    assert losses.softmax_loss(logits, labels, 0.1)[0] == pytest.approx(together, rel=1e-5)


def test_the_softmax_is_an_option():
    batch = {**BATCH, "labels": np.minimum(BATCH["labels"], CLASSES - 2)}  # the last class is the background
    total, terms = loss_of(batch=batch, class_loss="softmax", class_weight=1.0)
    weights = {"loss_ce": 1, "loss_bbox": 5, "loss_giou": 2}
    expected = sum(float(value) * weights.get(name.rstrip("_0123456789"), 0) for name, value in terms.items())
    assert total == pytest.approx(expected, rel=1e-5)
    assert terms["loss_ce"] != loss_of(batch=batch)[1]["loss_ce"]


@pytest.mark.parametrize("name", ["logits", "boxes"])
def test_predictions_that_are_not_finite_make_the_loss_nan(name):
    damaged = OUTPUTS[name].copy()
    damaged[-1, 0] = np.nan
    for solver in ("host", "device"):
        assert np.isnan(loss_of({**OUTPUTS, name: damaged}, solver=solver)[0])


@pytest.mark.parametrize(("changes", "label"), [({}, CLASSES), ({}, -1), ({"class_loss": "softmax"}, CLASSES - 1)])
def test_a_label_without_an_output_makes_the_loss_nan_unless_it_is_padding(changes, label):
    padding, target = (np.full_like(BATCH["labels"], 1) for _ in range(2))
    padding[0, 2] = target[0, 1] = label
    changed = options(solver="device", **changes)
    loss = jax.jit(lambda labels: losses.detection_loss(changed, OUTPUTS, {**BATCH, "labels": labels})[0])
    assert np.isfinite(loss(padding)) and np.isnan(loss(target))


def test_extreme_logits_have_a_finite_gradient():
    outputs = {**OUTPUTS, "logits": 1e4 * OUTPUTS["logits"]}
    device = options(solver="device")
    gradient = jitted(jax.grad(lambda outputs: losses.detection_loss(device, outputs, BATCH)[0]), outputs)
    assert all(np.isfinite(leaf).all() for leaf in gradient.values())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"giou_weight": -1.0}, "detector.giou_weight=-1.0 must not be negative"),
        ({"focal_alpha": 1.5}, r"detector.focal_alpha=1.5 must lie in \[0, 1\]"),
        ({"class_loss": "ce"}, "use 'focal' or 'softmax'"),
        ({"solver": ""}, "use 'host' or 'device'"),
    ],
)
def test_options_out_of_range_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        check(losses.OPTIONS, options(**changes), "detector")


def test_weights_and_costs_that_are_all_zero_are_refused():
    losses.check(options(), "detector")
    with pytest.raises(UserError, match="nothing is learned"):
        losses.check(options(class_weight=0.0, box_weight=0.0, giou_weight=0.0), "detector")
    with pytest.raises(UserError, match="every match is equally good"):
        losses.check(options(class_cost=0.0, box_cost=0.0, giou_cost=0.0), "detector")
