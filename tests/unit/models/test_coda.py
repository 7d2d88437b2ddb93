"""CODA-Prompt: the weights of the components."""

from types import SimpleNamespace

import jax
import numpy as np

from cdl_jax.models.learners import coda
from cdl_jax.options import defaults
from tests.support.contexts import context

OPTIONS = SimpleNamespace(**defaults(coda.OPTIONS, pool=6, length=2, layers=1))
RNG = np.random.default_rng(2)


def test_a_component_is_weighted_by_its_cosine_and_components_of_later_tasks_are_unused():
    pool = coda.build(OPTIONS, dim=8, key_dim=8, depth=1, num_tasks=3)  # two components a task
    query = RNG.normal(size=(4, 8)).astype(np.float32)
    shapes = jax.eval_shape(lambda key: pool.init(key, query, context(0, 2), False), jax.random.key(0))
    variables = jax.tree.map(lambda leaf: RNG.normal(size=leaf.shape).astype(np.float32), shapes)
    out = pool.apply(variables, query, context(2, 4, task=1), False)
    rows = {name: np.float64(values[:4]) for name, values in variables["params"].items()}
    attended = query[:, None] * rows["attention_0"]
    cosine = np.einsum("bkd,kd->bk", attended, rows["keys_0"]) / np.linalg.norm(attended, axis=2)
    weights = cosine / np.linalg.norm(rows["keys_0"], axis=1)
    assert (weights < 0).any()
    assert list(out.selected) == ["layer_0"] and out.selected["layer_0"].shape == (4, 6)
    np.testing.assert_allclose(out.selected["layer_0"][:, :4], np.abs(weights), rtol=1e-5, atol=1e-6)
    assert not np.any(out.selected["layer_0"][:, 4:])
    expected = np.einsum("bk,kld->bld", weights, rows["prompts_0"])
    np.testing.assert_allclose(np.concatenate(out.prompts[0].prefix, axis=1), expected, rtol=1e-5, atol=1e-5)
