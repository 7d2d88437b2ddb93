"""Losses of DKT against NumPy, their weights and class masks, and early stopping."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from cdl_jax.errors import UserError
from cdl_jax.methods.shared import dkt_losses, dkt_metrics
from cdl_jax.options import check, defaults
from cdl_jax.run import early_stopping

RNG = np.random.default_rng(5)
LOGITS, TEACHER_LOGITS, OTHER_LOGITS = (RNG.normal(0, 2, (5, 7)).astype(np.float32) for _ in range(3))
LABELS = jnp.array([0, 6, 3, 3, 1])


def softmax(x, axis=-1):
    return np.exp(x) / np.exp(x).sum(axis=axis, keepdims=True)


def numpy_terms(kind, temperature):
    """The loss of each image and class, `[batch, classes]`."""
    p, q = softmax(LOGITS / temperature), softmax(TEACHER_LOGITS / temperature)
    squared = (LOGITS - TEACHER_LOGITS) ** 2
    return {"mse": squared, "kd": q * np.log(q / p), "soft_mse": (p - q) ** 2, "none": 0 * p}[kind]


def student_loss(st_logits, teacher_logits, kind, temperature=2.0, reduction="mean"):
    target = dkt_losses.student_target(jnp.asarray(teacher_logits), kind, temperature)
    return dkt_losses.student_loss(jnp.asarray(st_logits), target, kind, temperature, reduction)


@pytest.mark.parametrize("kind", ["mse", "kd", "soft_mse", "none"])
def test_the_student_loss_is_a_mean_or_sum_over_images_and_classes(kind):
    for temperature in (1.0, 3.0):
        expected = numpy_terms(kind, temperature)
        assert student_loss(LOGITS, TEACHER_LOGITS, kind, temperature) == pytest.approx(expected.mean(), rel=1e-5)
        assert student_loss(LOGITS, TEACHER_LOGITS, kind, temperature, "sum") == pytest.approx(expected.sum(), rel=1e-5)
    assert not jax.grad(lambda z: student_loss(LOGITS, z, kind))(jnp.asarray(TEACHER_LOGITS)).any()
    assert jax.grad(lambda st: student_loss(st, TEACHER_LOGITS, kind))(jnp.asarray(LOGITS)).any() == (kind != "none")


@pytest.mark.parametrize("kind", ["mse", "kd"])
def test_an_averaged_target_has_the_gradient_of_averaged_losses(kind):
    targets = [dkt_losses.student_target(jnp.asarray(t), kind, 2.0) for t in (TEACHER_LOGITS, OTHER_LOGITS)]

    def loss_of_average(st):
        return dkt_losses.student_loss(st, 0.25 * targets[0] + 0.75 * targets[1], kind, 2.0)

    def average_of_losses(st):
        return 0.25 * student_loss(st, TEACHER_LOGITS, kind) + 0.75 * student_loss(st, OTHER_LOGITS, kind)

    np.testing.assert_allclose(
        jax.grad(loss_of_average)(jnp.asarray(LOGITS)), jax.grad(average_of_losses)(jnp.asarray(LOGITS)), atol=1e-7
    )


def test_a_teacher_with_probability_one_gives_finite_gradients():
    target = jnp.eye(7)[LABELS]
    value, gradient = jax.value_and_grad(lambda st: dkt_losses.student_loss(st, target, "kd", 1.0))(jnp.asarray(LOGITS))
    assert value == pytest.approx(-np.log(softmax(LOGITS)[np.arange(5), LABELS]).sum() / 35, rel=1e-5)
    assert np.isfinite(gradient).all()


def test_cross_entropy_spans_all_classes():
    losses = -np.log(softmax(LOGITS)[np.arange(5), LABELS])
    assert dkt_losses.class_loss(LOGITS, LABELS) == pytest.approx(losses.mean(), rel=1e-5)
    assert dkt_losses.class_loss(LOGITS, LABELS, "sum") == pytest.approx(losses.sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, [0.5] * 5),
        ({"kd_every": 1, "kd_step": -0.5, "kd_rel": 1.0}, [0.5, 0, 0, 0, 0]),  # 0 stays 0
        ({"kd_every": 1, "kd_step": -0.5, "kd_rel": 0.7}, [0.2, -0.3, -0.8, -1.3, -1.8]),
        ({"kd_every": 1, "kd_step": -0.5, "kd_rel": 0.7, "kd_clamp": True}, [0.2, 0, 0, 0, 0]),
        ({"kd_every": 2, "kd_step": 0.1}, [0.5, 0.6, 0.6, 0.7, 0.7]),
        ({"kd_every": 1, "kd_rel": 0.0}, [0] * 5),
        ({"kd_every": 1, "kd_warmup": 2}, [0, 0, 2.0, 2.5, 3.0]),
        ({"kd_every": 1, "kd_step": 0.0}, [0.5] * 5),
    ],
)
def test_the_distillation_weight_follows_its_schedule_over_tasks(changes, expected):
    options = ConfigDict(defaults(dkt_losses.OPTIONS, **changes))
    weight = jax.jit(partial(dkt_losses.kd_weight, options))
    weights = [weight(jnp.int32(task)) for task in range(5)]
    np.testing.assert_allclose(weights, expected, atol=1e-6)
    assert all(value.dtype == jnp.float32 for value in weights)
    assert [float(dkt_losses.kd_weight(options, task)) for task in range(5)] == [float(value) for value in weights]


def in_double_precision(start, step, tasks):
    """The authors' rule, in NumPy."""
    weight, weights = np.float64(start), []
    for _ in range(tasks):
        weight = weight if weight == 0 else weight + np.float64(step)
        weights.append(weight)
    return np.array(weights)


@pytest.mark.parametrize(
    ("start", "step"), [(0.3, -0.1), (0.8, -0.1), (0.6, -0.2), (0.5, -0.25), (0.9, -0.3), (7, -0.7)]
)
def test_the_distillation_weight_is_computed_in_double_precision(start, step):
    options = ConfigDict(defaults(dkt_losses.OPTIONS, kd_every=1, kd_rel=start, kd_step=step))
    weights = jax.jit(jax.vmap(partial(dkt_losses.kd_weight, options, num_tasks=12)))(jnp.arange(12))
    np.testing.assert_array_equal(weights, in_double_precision(start, step, 12).astype(np.float32))
    if (start, step) == (0.3, -0.1):  # 0.3 - 3 x 0.1 is -2.8e-17
        np.testing.assert_allclose(weights[:5], [0.2, 0.1, 0.0, -0.1, -0.2], atol=1e-7)
        assert -1e-16 < weights[2] < 0
    if (start, step) == (0.5, -0.25):  # exactly 0
        assert weights[1:].tolist() == [0.0] * 11


def test_active_classes_are_those_of_the_last_task_or_of_all_tasks():
    tasks = jnp.array([[1, 0, 0, 1, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 1]], bool)
    active = jax.jit(dkt_losses.active_classes, static_argnums=2)
    assert [active(tasks, t, "last").astype(int).tolist() for t in range(3)] == [
        [0, 0, 0, 0, 0],
        [1, 0, 0, 1, 0],
        [0, 1, 0, 0, 0],
    ]
    assert active(tasks, 2, "all_seen").tolist() == [True, True, False, True, False]
    assert not active(tasks, 0, "all_seen").any()


def test_lwf_and_eeil_preserve_the_active_classes():
    active, none = jnp.arange(7) < 3, jnp.zeros(7, bool)
    p, q = softmax(LOGITS[:, :3] / 2), softmax(TEACHER_LOGITS[:, :3] / 2)
    expected = (q * np.log(q / p)).sum(axis=1).mean()
    assert dkt_losses.lwf_loss(LOGITS, TEACHER_LOGITS, active, 2.0) == pytest.approx(expected, rel=1e-5)
    p, q = softmax(LOGITS[:, :3] / 2, 0), softmax(TEACHER_LOGITS[:, :3] / 2, 0)
    expected = -(q * np.log(p) + (1 - q) * np.log(1 - p)).mean(axis=0).sum()
    assert dkt_losses.eeil_loss(LOGITS, TEACHER_LOGITS, active, 2.0) == pytest.approx(expected, rel=1e-5)
    for loss in (dkt_losses.lwf_loss, dkt_losses.eeil_loss):
        value, gradient = jax.value_and_grad(loss)(jnp.asarray(LOGITS), TEACHER_LOGITS, none, 2.0)
        assert value == 0 and not gradient.any()
        assert not jax.grad(loss)(jnp.asarray(LOGITS), TEACHER_LOGITS, active, 2.0)[:, 3:].any()
        assert not jax.grad(loss, argnums=1)(jnp.asarray(LOGITS), jnp.asarray(TEACHER_LOGITS), active, 2.0).any()


def test_the_eeil_loss_is_finite_for_a_probability_of_one():
    logits = jnp.zeros((4, 7)).at[0, 0].set(300.0)
    value, gradient = jax.value_and_grad(dkt_losses.eeil_loss)(logits, TEACHER_LOGITS[:4], jnp.arange(7) < 3, 2.0)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("step", [0, 9])
def test_gradient_noise_equals_that_of_optax_with_the_squared_deviation(step):
    zeros = {"a": jnp.zeros(4000), "b": jnp.zeros((100, 40))}
    deviation = dkt_losses.gradient_noise_std(step)
    assert deviation == pytest.approx(0.3 / (1 + step) ** 0.55)
    ones = jax.tree.map(jnp.ones_like, zeros)
    value, noisy = jax.value_and_grad(dkt_losses.noise_loss)(ones, jax.random.key(1), deviation)
    assert value == 0
    values = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(noisy)])
    assert values.std() == pytest.approx(deviation, rel=0.03) and abs(values.mean()) < 0.05 * deviation
    assert abs(np.corrcoef(noisy["a"], noisy["b"].ravel())[0, 1]) < 0.06
    optax_noise = optax.add_noise(0.3**2, 2 * 0.55, 0)
    state = optax_noise.init(zeros)
    for _ in range(step + 1):
        added, state = optax_noise.update(zeros, state)
    assert float(added["a"].std()) == pytest.approx(deviation, rel=0.05)


def test_a_rounded_probability_of_one_half_counts_as_class_0():
    logits = jnp.log(jnp.array([[0.3, 0.45, 0.25], [0.2, 0.6, 0.2], [0.3, 0.45, 0.25]]))
    assert dkt_metrics.rounded_correct(logits, jnp.array([1, 1, 0])).tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("accuracies", "patience", "margin", "expected"),
    [
        ([50.0], 2, 1.0, (False, None, 50.0)),
        ([50.0, 49.0, 48.0], 2, 1.0, (True, None, 50.0)),
        ([50.0, 53.0, 52.0], 2, 1.0, (False, 1, 53.0)),
        ([50.0, 50.5, 50.2], 2, 1.0, (True, 2, 50.0)),  # within the margin: keeps the last one
        ([50.0, 53.0, 52.0, 53.5, 60.0, 61.0], 2, 1.0, (True, 3, 53.0)),  # stops before 60
    ],
)
def test_early_stopping_without_improvement(accuracies, patience, margin, expected):
    decision = early_stopping.decide(accuracies, patience, margin)
    assert (decision.stop, decision.keep, decision.best) == expected


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"st_loss": "ms"}, "dkt.st_loss='ms': did you mean 'mse'"),
        ({"reduction": "max"}, "dkt.reduction='max'"),
        ({"temperature": 0.0}, "dkt.temperature=0.0"),
        ({"kd_rel": -1.0}, "dkt.kd_rel=-1.0"),
        ({"kd_every": -1}, "dkt.kd_every=-1"),
    ],
)
def test_options_out_of_range_are_refused_by_name(changes, message):
    with pytest.raises(UserError, match=message):
        check(dkt_losses.OPTIONS, changes, "dkt")
    check(dkt_losses.OPTIONS, defaults(dkt_losses.OPTIONS), "dkt")
