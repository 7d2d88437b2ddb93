"""Calibration and agreement against float64 sums, in one batch and in several."""

import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.data import sampling
from cdl_jax.evaluation import calibration
from cdl_jax.evaluation.calibration import calibration_bins
from tests.support import fixed_logits

RNG = np.random.default_rng(3)
NUM, CLASSES, SIZES = 50, 6, (2, 2, 2)
LABELS = np.arange(NUM) % CLASSES
TEACHER, STUDENT = RNG.normal(0, 2, (2, NUM, CLASSES)).astype(np.float32)


def softmax(logits):
    e = np.exp(logits - logits.max(axis=1, keepdims=True))
    return e / e.sum(axis=1, keepdims=True)


def ece(p, labels):
    """Percent, bin by bin as Guo et al. write it."""
    top, right, total = p.max(axis=1), p.argmax(axis=1) == labels, 0.0
    for m in range(15):
        inside = (top > m / 15) & (top <= (m + 1) / 15)
        if inside.any():
            total += inside.sum() / len(p) * abs(right[inside].mean() - top[inside].mean())
    return 100 * total


def test_one_bin_by_hand():
    """Four images with top probability 0.9, three correct; one with 0.52, wrong."""
    p = np.array([[0.9, 0.1]] * 4 + [[0.48, 0.52]])
    sums = calibration_bins(jnp.log(p), jnp.array([0, 0, 0, 1, 0]), jnp.ones(2, bool))["calibration"].sum(axis=0)
    np.testing.assert_array_equal(sums[13, :2], [4, 3])
    np.testing.assert_array_equal(sums[7, :2], [1, 0])
    assert float(sums.sum()) == pytest.approx(4 + 3 + 3.6 + 1 + 0.52, rel=1e-6)
    assert calibration.calibration_error(sums) == pytest.approx(100 * (4 * 0.15 + 0.52) / 5, rel=1e-6)


def test_a_bin_has_its_upper_end_and_certainty_is_in_the_last():
    logits = jnp.array([[40.0, 0.0], [0.0, 0.0]])  # probabilities 1 and 1/2
    sums = calibration_bins(logits, jnp.array([0, 0]), jnp.ones(2, bool))["calibration"]
    assert [int(row[:, 0].argmax()) for row in sums] == [14, 7]
    four = calibration_bins(jnp.log(jnp.array([[0.2] * 5])), jnp.array([0]), jnp.ones(5, bool))["calibration"]
    assert int(four[0, :, 0].argmax()) == 2  # 1/5 = 3/15 closes the third bin


def test_agreement_and_kl_by_hand():
    teacher, student = (
        jnp.log(jnp.array([[0.5, 0.5, 1e-3], [0.9, 0.1, 1.0]])),
        jnp.log(jnp.array([[0.25, 0.75, 1.0], [0.9, 0.1, 1e-3]])),
    )
    found = calibration.agreement_and_kl(teacher, student, jnp.array([True, True, False]))
    np.testing.assert_array_equal(found["agreement"], [0, 1])
    np.testing.assert_allclose(found["kl"], [0.5 * np.log(2) + 0.5 * np.log(2 / 3), 0], atol=1e-6)


def evaluate(batch_size, seen_tasks, pairs=(("teacher", "student"),)):
    """Evaluates the two tables of logits over the first `seen_tasks` tasks."""
    tables = {"teacher": TEACHER, "student": STUDENT}
    return fixed_logits.evaluate(tables, LABELS, SIZES, seen_tasks, batch_size, pairs=pairs)


@pytest.mark.parametrize("seen_tasks", [1, 2, 3])
@pytest.mark.parametrize("batch_size", [1, 7, 16, 64])
def test_evaluations_equal_float64_for_any_batch_size(seen_tasks, batch_size):
    """50 images fill neither 7 nor 16 nor 64 evenly, so padding has no weight."""
    assert sampling.sequential_order(NUM, 16)[1].sum() == NUM
    evaluation = evaluate(batch_size, seen_tasks)
    accuracy, found = evaluation.accuracy, evaluation.calibration
    end = 2 * seen_tasks
    p, q = (softmax(x.astype(np.float64)[:, :end]) for x in (TEACHER, STUDENT))
    for name, table in (("teacher", p), ("student", q)):
        of_task = [LABELS // 2 == t for t in range(seen_tasks)]
        assert found["ece"][name] == pytest.approx([ece(table[rows], LABELS[rows]) for rows in of_task], abs=1e-4)
        rows = LABELS < end
        assert found["ece_seen"][name] == pytest.approx(ece(table[rows], LABELS[rows]), abs=1e-4)
        right = [100 * (table[rows].argmax(axis=1) == LABELS[rows]).mean() for rows in of_task]
        assert accuracy[name] == pytest.approx(right, abs=1e-12)
    kl = (p * np.log(p / q)).sum(axis=1)
    same = p.argmax(axis=1) == q.argmax(axis=1)
    assert found["kl"]["teacher/student"] == pytest.approx([kl[rows].mean() for rows in of_task], rel=1e-5)
    assert found["agreement"]["teacher/student"] == [
        pytest.approx(100 * same[rows].mean(), abs=1e-12) for rows in of_task
    ]


def test_counts_are_exact_and_only_declared_pairs_are_measured():
    assert evaluate(7, 3).calibration["agreement"] == evaluate(50, 3).calibration["agreement"]
    alone = evaluate(7, 2, pairs=()).calibration
    assert alone["agreement"] == alone["kl"] == {} and set(alone["ece"]) == {"teacher", "student"}
