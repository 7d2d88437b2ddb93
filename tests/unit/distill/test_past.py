"""The scheme that distills the student's own past."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import log_softmax

from cdl_jax import config as configs
from cdl_jax.errors import UserError
from cdl_jax.losses import Context
from cdl_jax.methods import cdl
from cdl_jax.methods.base import StreamInfo


def build(learner="lora", tasks=(2, 2, 2), **options):
    config = configs.default("cdl", data="glyph_mini", learner=learner, distill="past")
    for section, dim in (("teacher", 12), ("student", 8)):
        config[section].update(dim=dim, depth=2, heads=2, mlp_ratio=1.0, patch_size=8, image_size=16)
    config.distill.update(options)
    configs.check(config)
    return cdl.build(config, StreamInfo(sum(tasks), tasks))


def position(task):
    numbers = {"task": task, "first": 2 * task, "end": 2 * task + 2, "epoch": 0, "step": 0}
    return Context(**{k: jnp.int32(v) for k, v in numbers.items()}, progress=jnp.float32(0), key=jax.random.key(3))


def batch(task):
    rng = np.random.default_rng(0)
    return {"images": rng.random((4, 16, 16, 3), np.float32), "labels": np.array([0, 1, 1, 0], np.int32) + 2 * task}


@pytest.fixture(scope="module")
def method():
    return build(alpha=0.0, past_weight=3.0, past_temperature=4.0)


@pytest.fixture(scope="module")
def variables(method):
    rng = np.random.default_rng(1)
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype), shapes)


def test_the_past_has_the_changing_leaves_before_the_task(method, variables):
    new = jax.jit(method.start_task)(variables, position(1))
    assert "backbone" not in new["past"] and method.models.teacher is None
    for part, tree in new["past"].items():
        jax.tree.map(np.testing.assert_array_equal, tree, variables["student"][part])
    assert jax.tree.structure(new["past"]) == jax.tree.structure(variables["past"])
    assert method.bookkeeping == {"past"} and not method.is_frozen(("past", "head", "kernel"))


def test_the_loss_is_the_divergence_from_the_past_over_the_old_classes(method, variables):
    student, at = method.models.student, position(2)
    loss, outcome = jax.jit(method.student_loss)(variables, batch(2), at)
    own = {**variables["student"], **variables["past"]}

    @jax.jit
    def logits(past, present):
        images, query = batch(2)["images"], jnp.zeros((4, 8))
        before = student(past, images, query, at.replace(task=1, first=0, end=4), train=False)
        return before["logits"], student(present, images, query, at, train=True)["logits"]

    p, q = (log_softmax(np.float64(z)[:, :4] / 4, axis=1) for z in logits(own, variables["student"]))
    expected = 3 * 16 * (np.exp(p) * (p - q)).sum(axis=1).mean()
    assert float(outcome.metrics["past"]) == pytest.approx(expected, rel=1e-3)
    assert float(loss) == pytest.approx(expected + float(outcome.metrics["cross_entropy"]), rel=1e-4)


def test_the_first_task_has_no_past_and_no_gradient_reaches_the_past(method, variables):
    def loss(changed, task):
        return method.student_loss({**variables, **changed}, batch(task), position(task))

    parts = {name: variables[name] for name in ("student", "past")}
    step = jax.jit(jax.grad(loss, has_aux=True), static_argnums=1)
    _, first = step(parts, 0)
    gradients, later = step(parts, 1)
    assert float(first.metrics["past"]) == 0.0 and float(later.metrics["past"]) > 1e-3
    assert not any(map(np.any, jax.tree.leaves(gradients["past"])))
    (kernel,) = (leaf for leaf in jax.tree.leaves(gradients["student"]["head"]) if leaf.shape == (8, 6))
    assert np.any(kernel[:, :2])  # old classes are in the loss


def test_a_single_task_has_no_past():
    with pytest.raises(UserError, match="a stream of one task has no past"):
        build(tasks=(4,))
