"""Overlaps by hand, and assignments of both solvers against all permutations.

Some images have padding or predictions that are not finite.
"""

from itertools import permutations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from cdl_jax.errors import UserError
from cdl_jax.methods.shared import detection_matching as matching
from cdl_jax.methods.shared.detection_boxes import overlaps
from cdl_jax.options import defaults

SOLVERS = pytest.mark.parametrize("solver", ["host", "device"])


def options(**changes):
    return ConfigDict(defaults(matching.OPTIONS, **changes))


def smallest_sum(costs):
    """The smallest sum over all assignments of an image, by trying all."""
    queries, targets = costs.shape
    if queries < targets:
        return smallest_sum(costs.T)
    choices = permutations(range(queries), targets)
    return min(sum(costs[q, j] for j, q in enumerate(chosen)) for chosen in choices)


def matched_sum(costs, queries):
    return sum(costs[q, j] for j, q in enumerate(queries) if q >= 0)


def test_overlaps_by_hand():
    quarter = jnp.array([0.25, 0.25, 0.5, 0.5])
    others = jnp.array([[0.25, 0.25, 0.5, 0.5], [0.5, 0.5, 0.5, 0.5], [0.5, 0.5, 1.0, 1.0], [0.75, 0.75, 0.5, 0.5]])
    iou, giou = overlaps(quarter, others)
    # Equal; a corner of 1/16 in a hull of 9/16; inside; touching at one point in a hull of 1.
    np.testing.assert_allclose(iou, [1, 1 / 7, 1 / 4, 0], atol=1e-6)
    np.testing.assert_allclose(giou, [1, 1 / 7 - 2 / 9, 1 / 4, -1 / 2], atol=1e-6)


def test_the_cost_of_a_pair_by_hand():
    logits, label = np.array([0.3, -2.0, 1.2]), 1
    p = 1 / (1 + np.exp(-logits[label]))
    hit, miss = 0.25 * (1 - p) ** 2 * -np.log(p + 1e-8), 0.75 * p**2 * -np.log(1 - p + 1e-8)
    box, target = np.array([0.5, 0.5, 0.5, 0.5]), np.array([0.25, 0.25, 0.5, 0.5])
    expected = 3 * (hit - miss) + 5 * 0.5 - 2 * (1 / 7 - 2 / 9)
    costs = matching.pair_costs(
        options(class_cost=3.0),
        matching.focal_class_costs(jnp.array(logits)[None, None, None]),
        jnp.array(box)[None, None, None],
        jnp.array(target)[None, None],
        jnp.array([[label]]),
    )
    assert costs.shape == (1, 1, 1, 1)
    assert costs[0, 0, 0, 0] == pytest.approx(expected, rel=1e-5)


def test_the_cost_of_classes_that_exclude_each_other_is_minus_the_probability():
    np.testing.assert_allclose(matching.softmax_class_costs(jnp.log(jnp.array([1.0, 3.0]))), [-0.25, -0.75], rtol=1e-6)


def test_costs_have_no_gradient():
    def total(logits, boxes):
        classes = matching.focal_class_costs(logits)
        target = jnp.full((1, 2, 4), 0.4)
        return matching.pair_costs(options(), classes, boxes, target, jnp.zeros((1, 2), jnp.int32)).sum()

    for gradient in jax.grad(total, (0, 1))(jnp.ones((1, 1, 3, 2)), jnp.full((1, 1, 3, 4), 0.3)):
        assert not gradient.any()


@SOLVERS
@pytest.mark.parametrize(("queries", "targets"), [(6, 4), (4, 4), (3, 5)])
def test_the_sum_of_costs_is_the_smallest(solver, queries, targets):
    rng = np.random.default_rng(queries)
    costs = rng.normal(0, 3, (2, 3, queries, targets)).astype(np.float32)
    found = np.asarray(jax.jit(matching.match, static_argnums=2)(costs, jnp.ones((3, targets), bool), solver))
    assert found.shape == (2, 3, targets)
    for problem in np.ndindex(2, 3):
        used = found[problem][found[problem] >= 0]
        assert len(set(used)) == len(used) == min(queries, targets)
        assert matched_sum(costs[problem], found[problem]) == pytest.approx(smallest_sum(costs[problem]), rel=1e-5)


@SOLVERS
@pytest.mark.parametrize("queries", [6, 3])
def test_padding_changes_no_match(solver, queries):
    rng = np.random.default_rng(0)
    costs = rng.normal(0, 3, (1, 1, queries, 5)).astype(np.float32)
    valid = np.array([[True, False, True, True, False]])
    costs[..., ~valid[0]] = -50  # padding that would be attractive
    found = np.asarray(matching.match(costs, valid, solver))[0, 0]
    assert (found[~valid[0]] == -1).all()
    assert (
        found[valid[0]].tolist() == np.asarray(matching.match(costs[..., valid[0]], valid[:, valid[0]]))[0, 0].tolist()
    )


@SOLVERS
def test_an_image_without_objects_has_no_match(solver):
    assert matching.match(jnp.zeros((2, 1, 4, 3)), jnp.zeros((1, 3), bool), solver).tolist() == [[[-1] * 3]] * 2


def test_solvers_agree_on_the_sum_where_matches_are_tied():
    costs = np.float32([[[[1, 1, 2], [1, 1, 2], [3, 3, 0], [3, 3, 0]]]])
    sums = [
        matched_sum(costs[0, 0], np.asarray(matching.match(costs, np.ones((1, 3), bool), solver))[0, 0])
        for solver in ("host", "device")
    ]
    assert sums == [2, 2]


@SOLVERS
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_costs_that_are_not_finite_are_avoided(solver, value):
    costs = np.float32([[[[value, 1], [1, 5], [value, value]]]])
    assert matching.match(costs, np.ones((1, 2), bool), solver).tolist() == [[[1, 0]]]
    everywhere = np.full_like(costs, value)
    assert sorted(matching.match(everywhere, np.ones((1, 2), bool), solver)[0, 0].tolist())[0] >= 0


@SOLVERS
def test_matches_of_several_seeds_are_those_of_each(solver):
    costs = jax.random.normal(jax.random.key(0), (3, 2, 2, 5, 4))
    valid = jax.random.bernoulli(jax.random.key(1), 0.7, (3, 2, 4))
    together = jax.vmap(lambda *problem: matching.match(*problem, solver))(costs, valid)
    for seed in range(3):
        assert together[seed].tolist() == matching.match(costs[seed], valid[seed], solver).tolist()


@SOLVERS
def test_several_steps_in_one_call_have_the_matches_of_each(solver):
    costs, valid = jax.random.normal(jax.random.key(0), (4, 2, 2, 5, 4)), jnp.ones((2, 4), bool)

    @jax.jit
    def scan(costs):
        return jax.lax.scan(lambda total, c: (total, matching.match(c + total, valid, solver)), 0.0, costs)[1]

    for step, found in enumerate(scan(costs)):
        assert found.tolist() == matching.match(costs[step], valid, solver).tolist()


def test_the_solver_on_the_host_needs_a_cpu_backend(monkeypatch):
    def no_devices(backend=None):
        raise RuntimeError(f"Unknown backend {backend}")

    monkeypatch.setattr(jax, "local_devices", no_devices)
    with pytest.raises(UserError, match="JAX_PLATFORMS=cuda,cpu, or set detector.solver='device'"):
        matching.check(options(), "detector")
    matching.check(options(solver="device"), "detector")
