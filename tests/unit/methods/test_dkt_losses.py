"""Terms of DKT's loss against NumPy, weights and masks by task, and when a task has been learnt long enough."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from ml_collections import ConfigDict

from cdl_jax.errors import UserError
from cdl_jax.methods.shared import dkt_losses, dkt_metrics
from cdl_jax.run import early_stopping

RNG = np.random.default_rng(5)
LOGITS, TAUGHT, OTHER = (RNG.normal(0, 2, (5, 7)).astype(np.float32) for _ in range(3))
LABELS = jnp.array([0, 6, 3, 3, 1])


def softmax(x, axis=-1):
    return np.exp(x) / np.exp(x).sum(axis=axis, keepdims=True)


def of_numpy(kind, temperature):
    """Each picture's and class's part of the term, `[batch, classes]`."""
    p, q = softmax(LOGITS / temperature), softmax(TAUGHT / temperature)
    return {"mse": (LOGITS - TAUGHT) ** 2, "kd": q * np.log(q / p), "soft_mse": (p - q) ** 2, "none": 0 * p}[kind]


def term(st, taught, kind, temperature=2.0, reduction="mean"):
    target = dkt_losses.student_target(jnp.asarray(taught), kind, temperature)
    return dkt_losses.student_loss(jnp.asarray(st), target, kind, temperature, reduction)


@pytest.mark.parametrize("kind", ["mse", "kd", "soft_mse", "none"])
def test_a_term_is_the_mean_or_sum_over_pictures_and_classes(kind):
    for temperature in (1.0, 3.0):
        wanted = of_numpy(kind, temperature)
        assert term(LOGITS, TAUGHT, kind, temperature) == pytest.approx(wanted.mean(), rel=1e-5)
        assert term(LOGITS, TAUGHT, kind, temperature, "sum") == pytest.approx(wanted.sum(), rel=1e-5)
    assert not jax.grad(lambda taught: term(LOGITS, taught, kind))(jnp.asarray(TAUGHT)).any()
    assert jax.grad(lambda st: term(st, TAUGHT, kind))(jnp.asarray(LOGITS)).any() == (kind != "none")


@pytest.mark.parametrize("kind", ["mse", "kd"])
def test_an_averaged_target_teaches_as_the_average_of_terms_does(kind):
    targets = [dkt_losses.student_target(jnp.asarray(t), kind, 2.0) for t in (TAUGHT, OTHER)]

    def at_once(st):
        return dkt_losses.student_loss(st, 0.25 * targets[0] + 0.75 * targets[1], kind, 2.0)

    def each(st):
        return 0.25 * term(st, TAUGHT, kind) + 0.75 * term(st, OTHER, kind)

    np.testing.assert_allclose(jax.grad(at_once)(jnp.asarray(LOGITS)), jax.grad(each)(jnp.asarray(LOGITS)), atol=1e-7)


def test_a_certain_teacher_leaves_no_nan():
    target = jnp.eye(7)[LABELS]
    value, gradient = jax.value_and_grad(lambda st: dkt_losses.student_loss(st, target, "kd", 1.0))(jnp.asarray(LOGITS))
    assert value == pytest.approx(-np.log(softmax(LOGITS)[np.arange(5), LABELS]).sum() / 35, rel=1e-5)
    assert np.isfinite(gradient).all()


def test_cross_entropy_spans_all_classes():
    each = -np.log(softmax(LOGITS)[np.arange(5), LABELS])
    assert dkt_losses.class_loss(LOGITS, LABELS) == pytest.approx(each.mean(), rel=1e-5)
    assert dkt_losses.class_loss(LOGITS, LABELS, "sum") == pytest.approx(each.sum(), rel=1e-5)


@pytest.mark.parametrize(
    ("changes", "wanted"),
    [
        ({}, [0.5] * 5),
        ({"kd_every": 1, "kd_step": -0.5, "kd_rel": 1.0}, [0.5, 0, 0, 0, 0]),  # 0 is kept
        ({"kd_every": 1, "kd_step": -0.5, "kd_rel": 0.7}, [0.2, -0.3, -0.8, -1.3, -1.8]),
        ({"kd_every": 1, "kd_step": -0.5, "kd_rel": 0.7, "kd_clamp": True}, [0.2, 0, 0, 0, 0]),
        ({"kd_every": 2, "kd_step": 0.1}, [0.5, 0.6, 0.6, 0.7, 0.7]),
        ({"kd_every": 1, "kd_rel": 0.0}, [0] * 5),
        ({"kd_every": 1, "kd_warmup": 2}, [0, 0, 2.0, 2.5, 3.0]),
        ({"kd_every": 1, "kd_step": 0.0}, [0.5] * 5),
    ],
)
def test_the_weight_of_distillation_changes_from_task_to_task(changes, wanted):
    options = ConfigDict({**dkt_losses.OPTIONS, **changes})
    weight = jax.jit(partial(dkt_losses.kd_weight, options))
    found = [weight(jnp.int32(task)) for task in range(5)]
    np.testing.assert_allclose(found, wanted, atol=1e-6)
    assert all(value.dtype == jnp.float32 for value in found)
    assert [float(dkt_losses.kd_weight(options, task)) for task in range(5)] == [float(value) for value in found]


def in_double_precision(start, step, tasks):
    """The authors' rule, in NumPy."""
    weight, found = np.float64(start), []
    for _ in range(tasks):
        weight = weight if weight == 0 else weight + np.float64(step)
        found.append(weight)
    return np.array(found)


@pytest.mark.parametrize(
    ("start", "step"), [(0.3, -0.1), (0.8, -0.1), (0.6, -0.2), (0.5, -0.25), (0.9, -0.3), (7, -0.7)]
)
def test_the_weight_is_computed_in_double_precision(start, step):
    options = ConfigDict({**dkt_losses.OPTIONS, "kd_every": 1, "kd_rel": start, "kd_step": step})
    found = jax.jit(jax.vmap(partial(dkt_losses.kd_weight, options, num_tasks=12)))(jnp.arange(12))
    np.testing.assert_array_equal(found, in_double_precision(start, step, 12).astype(np.float32))
    if (start, step) == (0.3, -0.1):  # 0.3 - 3 x 0.1 is -2.8e-17
        np.testing.assert_allclose(found[:5], [0.2, 0.1, 0.0, -0.1, -0.2], atol=1e-7)
        assert -1e-16 < found[2] < 0
    if (start, step) == (0.5, -0.25):  # exactly 0
        assert found[1:].tolist() == [0.0] * 11


def test_old_classes_are_those_of_the_task_before_or_of_all():
    tasks = jnp.array([[1, 0, 0, 1, 0], [0, 1, 0, 0, 0], [0, 0, 1, 0, 1]], bool)
    active = jax.jit(dkt_losses.active_classes, static_argnums=2)
    assert [active(tasks, t, "last").astype(int).tolist() for t in range(3)] == [
        [0, 0, 0, 0, 0],
        [1, 0, 0, 1, 0],
        [0, 1, 0, 0, 0],
    ]
    assert active(tasks, 2, "all_seen").tolist() == [True, True, False, True, False]
    assert not active(tasks, 0, "all_seen").any()


def test_lwf_and_eeil_hold_on_to_the_active_columns():
    active, none = jnp.arange(7) < 3, jnp.zeros(7, bool)
    p, q = softmax(LOGITS[:, :3] / 2), softmax(TAUGHT[:, :3] / 2)
    wanted = (q * np.log(q / p)).sum(axis=1).mean()
    assert dkt_losses.lwf_loss(LOGITS, TAUGHT, active, 2.0) == pytest.approx(wanted, rel=1e-5)
    p, q = softmax(LOGITS[:, :3] / 2, 0), softmax(TAUGHT[:, :3] / 2, 0)
    wanted = -(q * np.log(p) + (1 - q) * np.log(1 - p)).mean(axis=0).sum()
    assert dkt_losses.eeil_loss(LOGITS, TAUGHT, active, 2.0) == pytest.approx(wanted, rel=1e-5)
    for loss in (dkt_losses.lwf_loss, dkt_losses.eeil_loss):
        value, gradient = jax.value_and_grad(loss)(jnp.asarray(LOGITS), TAUGHT, none, 2.0)
        assert value == 0 and not gradient.any()
        assert not jax.grad(loss)(jnp.asarray(LOGITS), TAUGHT, active, 2.0)[:, 3:].any()
        assert not jax.grad(loss, argnums=1)(jnp.asarray(LOGITS), jnp.asarray(TAUGHT), active, 2.0).any()


def test_eeil_bears_a_column_that_one_picture_has_to_itself():
    logits = jnp.zeros((4, 7)).at[0, 0].set(300.0)
    value, gradient = jax.value_and_grad(dkt_losses.eeil_loss)(logits, TAUGHT[:4], jnp.arange(7) < 3, 2.0)
    assert np.isfinite(value) and np.isfinite(gradient).all()


@pytest.mark.parametrize("step", [0, 9])
def test_noise_is_what_optax_adds_with_the_squared_deviation(step):
    zeros = {"a": jnp.zeros(4000), "b": jnp.zeros((100, 40))}
    deviation = dkt_losses.gradient_noise_std(step)
    assert deviation == pytest.approx(0.3 / (1 + step) ** 0.55)
    ones = jax.tree.map(jnp.ones_like, zeros)
    value, noisy = jax.value_and_grad(dkt_losses.noise_loss)(ones, jax.random.key(1), deviation)
    assert value == 0
    both = np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(noisy)])
    assert both.std() == pytest.approx(deviation, rel=0.03) and abs(both.mean()) < 0.05 * deviation
    assert abs(np.corrcoef(noisy["a"], noisy["b"].ravel())[0, 1]) < 0.06
    theirs = optax.add_noise(0.3**2, 2 * 0.55, 0)
    state = theirs.init(zeros)
    for _ in range(step + 1):
        added, state = theirs.update(zeros, state)
    assert float(added["a"].std()) == pytest.approx(deviation, rel=0.05)


def test_a_rounded_probability_of_one_half_counts_as_class_0():
    logits = jnp.log(jnp.array([[0.3, 0.45, 0.25], [0.2, 0.6, 0.2], [0.3, 0.45, 0.25]]))
    assert dkt_metrics.rounded_correct(logits, jnp.array([1, 1, 0])).tolist() == [0, 1, 1]


@pytest.mark.parametrize(
    ("accuracies", "patience", "margin", "wanted"),
    [
        ([50.0], 2, 1.0, (False, None, 50.0)),
        ([50.0, 49.0, 48.0], 2, 1.0, (True, None, 50.0)),
        ([50.0, 53.0, 52.0], 2, 1.0, (False, 1, 53.0)),
        ([50.0, 50.5, 50.2], 2, 1.0, (True, 2, 50.0)),  # within the margin: the last one wins, and the wait goes on
        ([50.0, 53.0, 52.0, 53.5, 60.0, 61.0], 2, 1.0, (True, 3, 53.0)),  # over before 60 is seen
    ],
)
def test_learning_stops_when_nothing_better_comes(accuracies, patience, margin, wanted):
    found = early_stopping.judge(accuracies, patience, margin)
    assert (found.stop, found.keep, found.best) == wanted


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
def test_options_out_of_range_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        dkt_losses.check("dkt", ConfigDict({**dkt_losses.OPTIONS, **changes}))
    dkt_losses.check("dkt", ConfigDict(dkt_losses.OPTIONS))
