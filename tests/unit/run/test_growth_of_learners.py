"""Grown variables predict the parent's classes as before: axes grew at their end."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.data import stream
from cdl_jax.losses import Context
from cdl_jax.methods.base import join
from cdl_jax.run.branching import Growth
from cdl_jax.training.experiment import Experiment
from cdl_jax.training.state import position
from tests.end_to_end import tiny


def build(learner, max_tasks):
    config = tiny.get_config(f"learner={learner}")
    config.data.max_tasks = max_tasks
    if learner == "coda":
        config.learner.pool = 2 * (max_tasks or 5)
    return Experiment.build(config, stream.load(config.data, 0))


def with_noise(tree):
    """Returns variables without the equal and zero values that hide a wrong axis."""
    rng = np.random.default_rng(0)

    def add(leaf):
        is_real = jnp.issubdtype(leaf.dtype, jnp.floating)
        return jnp.asarray(leaf + rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype) if is_real else leaf)

    return jax.tree.map(add, jax.device_get(tree))


def logits_after(experiment, mutable, frozen, task):
    images = jax.random.uniform(jax.random.key(1), (4, 32, 32, 3))
    context = Context(**position(task), key=jax.random.key(0), weight=jnp.ones(4))

    @jax.jit
    def predict(variables):
        queries = experiment.method.queries(variables, images)
        return experiment.method.predict(variables, images, context.replace(queries=queries))[0]

    return predict(join(frozen, mutable))


@pytest.mark.parametrize("learner", ["coda", "ease"])
def test_a_grown_learner_predicts_the_old_classes_as_before(learner):
    old, new = build(learner, 4), build(learner, 0)
    growth = Growth(((16, 20), (4, 5)))
    mutable, frozen = old.initial_variables()
    mutable, frozen = with_noise(mutable), jax.device_get(frozen)
    growth.check(mutable, frozen, new, {})
    grown = jax.tree.map(jnp.asarray, growth.apply(mutable, new.initial_variables()[0]))
    last = old.stream.tasks[-1]
    before, after = logits_after(old, mutable, frozen, last), logits_after(new, grown, frozen, last)
    for network, expected in before.items():
        assert after[network].shape == (4, 20) and np.ptp(expected) > 0.05
        np.testing.assert_allclose(after[network][:, :16], expected, rtol=1e-4, atol=1e-4)
