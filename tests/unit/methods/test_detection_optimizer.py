"""Detection's optimizer in NumPy: decay groups, clipping, schedules, accumulation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from cdl_jax.errors import UserError
from cdl_jax.methods.shared import detection_optimizer as detection
from cdl_jax.options import check, defaults

TWO = jnp.full(2, 2.0)
MATRIX = jnp.full((2, 2), 2.0)
PARAMS = {
    "student": {
        "params": {
            "backbone": {
                "det_token": MATRIX,
                "det_pos_embed": MATRIX,
                "attn": {"relative_position_bias_table": MATRIX, "qkv": {"kernel": MATRIX, "bias": TWO}},
                "norm": {"scale": TWO, "bias": TWO},
            },
            "class_embed": {"kernel": MATRIX, "bias": TWO},
        }
    },
    "distill": {"params": {"body_det_projector": {"projector": {"raw": MATRIX}, "scale": TWO}}},
}


def options(**changes):
    return ConfigDict(defaults(detection.OPTIONS, **changes))


def take_steps(optimizer, params, gradients, epochs):
    state = optimizer.transform.init(params)
    for gradient, epoch in zip(gradients, epochs, strict=True):
        direction, state = optimizer.transform.update(gradient, state, params)
        rate = optimizer.learning_rate(jnp.float32(epoch))
        params = jax.tree.map(lambda p, d, rate=rate: p - rate * d, params, direction)
    return params


def test_decay_spares_vectors_biases_and_tokens_of_the_backbone_alone():
    zero = jax.tree.map(jnp.zeros_like, PARAMS)
    after = take_steps(detection.build(options(weight_decay=0.5, learning_rate=0.1), 3), PARAMS, [zero], [0])
    # Without a gradient a step is the decay: 2 (1 - 0.1 * 0.5) = 1.9.
    decayed = {
        jax.tree_util.keystr(path): float(leaf.ravel()[0]) for path, leaf in jax.tree_util.tree_leaves_with_path(after)
    }
    spared = {path.split("'")[-2] for path, value in decayed.items() if value == 2 and "backbone" in path}
    assert spared == {"det_token", "det_pos_embed", "bias", "scale"}
    assert all(value == pytest.approx(1.9) for path, value in decayed.items() if "backbone" not in path)
    assert sum(value == pytest.approx(1.9) for value in decayed.values()) == 2 + 4


def test_two_steps_of_clipped_adamw_against_numpy():
    params = {"head": {"kernel": jnp.array([[1.0, -2.0], [0.5, 3.0]])}}
    gradients = [np.array([[3.0, -1.0], [0.2, 0.0]]), np.array([[0.01, 0.02], [-0.03, 0.0]])]
    wanted, first, second = np.array(params["head"]["kernel"], np.float64), 0.0, 0.0
    for step, gradient in enumerate(gradients, 1):
        gradient = gradient * min(1, 0.1 / (np.linalg.norm(gradient) + 1e-6))
        first, second = 0.9 * first + 0.1 * gradient, 0.999 * second + 0.001 * gradient**2
        direction = (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
        wanted = wanted * (1 - 0.01 * 0.3) - 0.01 * direction
    optimizer = detection.build(options(learning_rate=0.01, weight_decay=0.3), 5)
    after = take_steps(optimizer, params, [{"head": {"kernel": jnp.float32(g)}} for g in gradients], [0, 1])
    np.testing.assert_allclose(after["head"]["kernel"], wanted, rtol=1e-5)


def test_the_norm_spans_all_parameters_and_small_gradients_keep_their_length():
    clip = detection.clip_by_global_norm(0.5)
    large = {"a": jnp.array([3.0]), "b": jnp.array([4.0])}
    clipped, _ = clip.update(large, clip.init(large))
    assert float(clipped["a"][0]) == pytest.approx(0.5 * 3 / 5, rel=1e-5)
    assert float(clipped["b"][0]) == pytest.approx(0.5 * 4 / 5, rel=1e-5)
    assert clip.update({"a": jnp.array([0.3])}, clip.init(large))[0]["a"].tolist() == pytest.approx([0.3])


@pytest.mark.parametrize(("bound", "expected"), [(0.0, -7.0), (0.1, -0.1)])
def test_clipping_is_optional(bound, expected):
    # Adam without memory and with a large eps: the direction is gradient / eps.
    settings = options(clip_norm=bound, betas=(0.0, 0.0), eps=1e6, weight_decay=0.0, learning_rate=1e6)
    after = take_steps(detection.build(settings, 5), {"x": jnp.zeros(1)}, [{"x": jnp.full(1, 7.0)}], [0])
    assert float(after["x"][0]) == pytest.approx(expected, rel=1e-4)


def test_the_rate_is_constant_within_an_epoch_and_late_by_one():
    rate = detection.schedule(options(learning_rate=1.0, end_learning_rate=0.2), epochs=4)
    expected = [0.2 + 0.4 * (1 + np.cos(np.pi * t / 4)) for t in (0, 0, 1, 2)]
    for epoch, value in enumerate(expected):
        assert [float(rate(epoch)), float(rate(epoch + 0.9))] == pytest.approx([value, value])


def test_the_warm_up_begins_at_its_own_rate():
    rate = detection.schedule(
        options(learning_rate=1.0, end_learning_rate=0.0, warmup_epochs=2, warmup_learning_rate=0.2), epochs=5
    )
    cosine = [(1 + np.cos(np.pi * t / 5)) / 2 for t in (2, 3)]
    assert [float(rate(e)) for e in range(5)] == pytest.approx([0.2, 0.2, 0.6, *cosine])


def test_milestones_divide_the_rate_by_ten():
    rate = detection.schedule(options(learning_rate=1.0, schedule="steps", milestones=(2, 4)), epochs=5)
    assert [float(rate(e)) for e in (0, 1.9, 2, 3, 4)] == pytest.approx([1, 1, 0.1, 0.1, 0.01])


def test_accumulated_batches_are_one_step_on_their_mean():
    params, parts = {"x": jnp.array([1.0, 2.0])}, [jnp.array([0.3, 0.1]), jnp.array([0.1, -0.5])]
    together = take_steps(detection.build(options(), 5), params, [{"x": (parts[0] + parts[1]) / 2}], [0])
    divided = take_steps(detection.build(options(accumulate=2), 5), params, [{"x": part} for part in parts], [0, 0])
    np.testing.assert_allclose(divided["x"], together["x"], rtol=1e-6)
    first = take_steps(detection.build(options(accumulate=2), 5), params, [{"x": parts[0]}], [0])
    assert first["x"].tolist() == [1, 2]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"learning_rate": 0.0}, "optim.learning_rate=0.0 must be above 0"),
        ({"clip_norm": -0.1}, "optim.clip_norm=-0.1 must not be negative"),
        ({"schedule": "cosin"}, "use 'cosine' or 'steps'"),
        ({"betas": (0.9, 1.0)}, "optim.betas"),
        ({"accumulate": 0}, "optim.accumulate=0 must be at least 1"),
    ],
)
def test_options_out_of_range_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        check(detection.OPTIONS, options(**changes), "optim")


def test_a_warmup_as_long_as_the_phase_is_refused():
    with pytest.raises(UserError, match="optim.warmup_epochs=5 must be less than epochs=5"):
        detection.build(options(warmup_epochs=5), 5)
