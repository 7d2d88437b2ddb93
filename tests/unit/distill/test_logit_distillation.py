"""KD and DKD over the named classes; other columns of the logits have no effect."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax, softmax

from cdl_jax.distill import dkd, kd, none
from cdl_jax.distill.base import NetworkSpec
from cdl_jax.errors import UserError
from tests.support.contexts import context
from tests.support.sections import checked

CLASSES = 7
RNG = np.random.default_rng(3)
STUDENT, TEACHER = RNG.normal(0, 2, (2, 5, CLASSES))
LABELS = np.array([2, 3, 4, 4, 2])
CONTEXT = context(2, 5, task=1)
COLUMNS = {"current": slice(2, 5), "seen": slice(0, 5)}


def scheme(module, **changes):
    spec = NetworkSpec(dim=4, depth=2, tokens=5, num_classes=CLASSES, num_tasks=2, head=None, learner=None)
    return module.build(checked("distill", module.OPTIONS, **changes), spec, spec)


def loss(module, student=STUDENT, teacher=TEACHER, **changes):
    student, teacher = jnp.asarray(student), jnp.asarray(teacher)
    return scheme(module, **changes).loss({}, {"logits": student}, {"logits": teacher}, LABELS, CONTEXT)


@pytest.mark.parametrize("classes", ["current", "seen"])
def test_kd_is_the_scaled_kl_divergence_over_the_named_classes(classes):
    student, teacher = (log_softmax(x[:, COLUMNS[classes]] / 3, axis=1) for x in (STUDENT, TEACHER))
    divergence = (np.exp(teacher) * (teacher - student)).sum(axis=1).mean()
    value, terms = loss(kd, alpha=0.25, temperature=3.0, classes=classes)
    assert float(value) == pytest.approx(0.25 * 9 * divergence, rel=1e-5)
    assert terms == {"kd": value}
    assert scheme(kd, alpha=0.25).label_weight == 0.75


@pytest.mark.parametrize("classes", ["current", "seen"])
def test_dkd_is_the_weighted_sum_of_tckd_and_nckd(classes):
    temperature, columns = 4.0, COLUMNS[classes]
    tckd = nckd = 0.0
    for student, teacher, label in zip(STUDENT, TEACHER, LABELS, strict=True):
        student, teacher = student[columns] / temperature, teacher[columns] / temperature
        label -= columns.start
        p, q = softmax(student), softmax(teacher)
        tckd += q[label] * np.log(q[label] / p[label]) + (1 - q[label]) * np.log((1 - q[label]) / (1 - p[label]))
        p, q = (softmax(np.delete(x, label)) for x in (student, teacher))
        nckd += (q * np.log(q / p)).sum()
    tckd, nckd = 16 * tckd / 5, 16 * nckd / 5
    value, terms = loss(dkd, alpha=0.3, target_weight=2.0, other_weight=5.0, classes=classes)
    assert float(terms["tckd"]) == pytest.approx(tckd, rel=1e-4)
    assert float(terms["nckd"]) == pytest.approx(nckd, rel=1e-4)
    assert float(value) == pytest.approx(0.3 * (2 * tckd + 5 * nckd), rel=1e-4)
    assert float(terms["dkd"]) == float(value)
    assert scheme(dkd, alpha=0.3).label_weight == 0.7


@pytest.mark.parametrize("module", [kd, dkd])
def test_current_and_seen_classes_give_different_losses(module):
    assert float(loss(module, classes="current")[0]) != pytest.approx(float(loss(module, classes="seen")[0]), rel=0.01)


@pytest.mark.parametrize("classes", ["current", "seen"])
@pytest.mark.parametrize("module", [kd, dkd])
def test_masked_columns_have_no_gradient_and_no_effect(module, classes):
    masked = np.ones(CLASSES, bool)
    masked[COLUMNS[classes]] = False
    gradient = jax.grad(lambda x: loss(module, x, classes=classes)[0])(jnp.asarray(STUDENT))
    assert np.all(np.asarray(gradient)[:, masked] == 0)
    assert np.abs(np.asarray(gradient)[:, ~masked]).min() > 1e-5
    np.testing.assert_allclose(gradient.sum(axis=1), 0, atol=1e-6)  # a softmax is invariant to a common shift
    changed = np.where(masked, 1e4, STUDENT), np.where(masked, -1e4, TEACHER)
    assert float(loss(module, *changed, classes=classes)[0]) == float(loss(module, classes=classes)[0])


@pytest.mark.parametrize("module", [kd, dkd])
def test_equal_logits_give_zero_loss_and_zero_gradient(module):
    gradient = jax.grad(lambda x: loss(module, x, STUDENT)[0])(jnp.asarray(STUDENT))
    assert float(loss(module, STUDENT, STUDENT)[0]) == pytest.approx(0, abs=1e-5)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


@pytest.mark.parametrize("module", [kd, dkd])
def test_large_logits_give_finite_gradients(module):
    for student, teacher in ((STUDENT * 200, TEACHER), (STUDENT, TEACHER * 200)):
        value, gradient = jax.value_and_grad(lambda x, t=teacher: loss(module, x, t)[0])(jnp.asarray(student))
        assert np.isfinite(value) and np.isfinite(gradient).all()


def test_scheme_none_has_zero_loss_and_no_teacher():
    without_teacher = scheme(none)
    assert (without_teacher.needs, without_teacher.label_weight) == ((), 1.0)
    value, terms = without_teacher.loss({}, {"logits": STUDENT}, {}, LABELS, CONTEXT)
    assert float(value) == 0 and terms == {}
    np.testing.assert_array_equal(without_teacher.predict({}, {"logits": STUDENT}), STUDENT)


@pytest.mark.parametrize("module", [kd, dkd])
@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": 1.5}, r"distill.alpha=1.5 must lie in \[0, 1\]"),
        ({"temperature": 0.0}, r"distill.temperature=0.0 must lie in \[0.01, 1000\]"),
        ({"classes": "all"}, "distill.classes='all': use 'current' or 'seen'"),
    ],
)
def test_options_out_of_range_are_refused(module, changes, message):
    with pytest.raises(UserError, match=message):
        scheme(module, **changes)
