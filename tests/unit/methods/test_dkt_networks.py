"""The evaluated networks of DKT: names, logits of means, and what they pass on."""

import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.methods.shared.dkt_learners import LearnerOutputs
from cdl_jax.methods.shared.dkt_networks import EvaluatedNetworks


def log_of(*probabilities):
    """Returns logits of the probabilities, shifted by a constant that softmax ignores."""
    return jnp.log(jnp.array([probabilities])) + 3.0


OUTPUTS = {
    "a": LearnerOutputs(log_of(0.5, 0.25, 0.25), log_of(0.1, 0.65, 0.25), intermediates={"features": jnp.ones((1, 2))}),
    "b": LearnerOutputs(log_of(0.1, 0.75, 0.15), log_of(0.9, 0.05, 0.05)),
}
BOTH = EvaluatedNetworks(("a", "b"), st_heads=True)


def test_means_average_probabilities_and_not_logits():
    logits = BOTH.logits(OUTPUTS)
    assert tuple(logits) == BOTH.names
    np.testing.assert_array_equal(logits["a"], OUTPUTS["a"].cl_logits)
    np.testing.assert_array_equal(logits["b_st"], OUTPUTS["b"].st_logits)
    np.testing.assert_allclose(np.exp(logits["a_both"]), [[0.3, 0.45, 0.25]], rtol=1e-5)
    np.testing.assert_allclose(np.exp(logits["b_both"]), [[0.5, 0.4, 0.1]], rtol=1e-5)
    np.testing.assert_allclose(np.exp(logits["ensemble"]), [[0.3, 0.5, 0.2]], rtol=1e-5)


def test_means_of_probabilities_that_underflow_are_finite():
    outputs = {name: LearnerOutputs(jnp.array([[150.0, 0.0, -150.0]]), jnp.zeros((1, 3))) for name in "ab"}
    np.testing.assert_allclose(BOTH.logits(outputs)["ensemble"], [[0.0, -150.0, -300.0]], rtol=1e-5)


def test_without_trained_st_heads_only_cl_heads_are_evaluated():
    networks = EvaluatedNetworks(("a", "b"), st_heads=False)
    assert tuple(networks.logits(OUTPUTS)) == networks.names == ("a", "b", "ensemble")
    assert networks.stream_of == {"a": 0, "b": 1} and networks.mean_groups == {"mean": ("a", "b")}
    alone = EvaluatedNetworks(("a",), st_heads=False)
    assert tuple(alone.logits({"a": OUTPUTS["a"]})) == alone.names == ("a",)


@pytest.mark.parametrize(("network", "has_features"), [("a_both", True), ("b_st", False), ("ensemble", False)])
def test_a_teacher_has_the_intermediates_of_its_own_learner(network, has_features):
    outputs = BOTH.outputs_of(network, OUTPUTS)
    assert ("features" in outputs) is has_features
    np.testing.assert_array_equal(outputs["logits"], BOTH.logits(OUTPUTS)[network])


def test_heads_are_the_last_layers_of_a_learners_features():
    features = BOTH.features(OUTPUTS)
    assert {name: list(layers) for name, layers in features.items()} == {
        "a": ["features", "cl", "st"],
        "b": ["cl", "st"],
    }
    np.testing.assert_array_equal(features["a"]["st"], OUTPUTS["a"].st_logits)
    np.testing.assert_array_equal(features["b"]["cl"], OUTPUTS["b"].cl_logits)
    assert list(EvaluatedNetworks(("b",), st_heads=False).features({"b": OUTPUTS["b"]})["b"]) == ["cl"]


def test_metrics_of_each_head_and_learner():
    """Of three classes, learner a has met 0 and b has met 1: each lacks the other's."""
    labels, ranks = jnp.array([1]), np.array([[0, 1, 2], [1, 0, 2]])
    metrics = BOTH.metrics(BOTH.logits(OUTPUTS), labels, ranks, end=1)
    groups = {f"mean{suffix}/accuracy_on_others_classes" for suffix in ("", "_st", "_both")}
    assert set(metrics) == groups | {"a/rounded_accuracy", "b/rounded_accuracy"}
    # The image counts for learner a alone, as b has met class 1. The CL head of a predicts 0, its ST head and mean 1.
    # One class in three: a correct image counts 3 x 100, divided by the two learners.
    found = [metrics[f"mean{suffix}/accuracy_on_others_classes"].item() for suffix in ("", "_st", "_both")]
    assert found == pytest.approx([0, 150, 150])
    assert (metrics["a/rounded_accuracy"].item(), metrics["b/rounded_accuracy"].item()) == (0, 100)
