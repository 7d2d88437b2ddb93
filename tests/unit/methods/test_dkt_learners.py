"""DKT's prompt learners: shared, trained and published parts; the ST head's input."""

from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax import config as configs
from cdl_jax.methods.base import StreamInfo
from cdl_jax.methods.shared import dkt_learners
from tests.support.contexts import context
from tests.support.manual_steps import quick

INFO = StreamInfo(4, (2, 2))


def build(**learner_options):
    config = configs.default("dkt", data="glyph_mini", network="mini_student", learner="l2p")
    config.network.update(dim=8, depth=1, heads=2, patch_size=4, image_size=8)
    config.learner.update(pool=4, length=2, top_k=2, **learner_options)
    return dkt_learners.build(config, INFO)


def initial(learner):
    """Draws (variables, shared variables); the learner's `init` compiles for seconds."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(lambda key: (learner.init(key), learner.init_shared(key)), jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype), shapes)


def test_prompts_and_heads_are_published_and_the_backbone_is_shared():
    learner = build()
    variables, shared = initial(learner)
    assert learner.image_size == 8
    assert set(variables) == {"prompts", "head", "state", "student"}
    assert [part for part in sorted(variables) if learner.is_trained(part)] == ["head", "prompts", "student"]
    assert shared and "head" not in shared


@pytest.mark.parametrize("prompt_form", ["prefix", "tokens"])
def test_the_st_head_reads_the_features_of_the_cl_head(prompt_form):
    learner = build(prompt_form=prompt_form)
    variables, shared = initial(learner)
    images = jnp.asarray(np.random.default_rng(1).normal(size=(3, 8, 8, 3)), jnp.float32)
    outputs = quick(lambda *trees: learner(*trees, images, True, context(0, 2), None))(variables, shared)
    intermediates = jax.device_get(outputs.intermediates)
    features = intermediates["prompt_tokens"].mean(axis=1) if prompt_form == "tokens" else intermediates["class_token"]
    for head, logits in (("head", outputs.cl_logits), ("student", outputs.st_logits)):
        (weights,) = [leaf for leaf in jax.tree.leaves(variables[head]) if leaf.ndim == 2]
        (bias,) = [leaf for leaf in jax.tree.leaves(variables[head]) if leaf.ndim == 1]
        np.testing.assert_allclose(logits, features @ weights + bias, atol=1e-5)
    assert float(outputs.extra_loss) == float(intermediates["prompts"].loss) != 0


def test_a_task_starts_and_ends_in_the_prompt_pool_alone():
    """L2P changes nothing between tasks, so a pool that does stands in for it."""
    learner = build()
    variables, _ = initial(learner)
    calls = []

    class Recording:
        def start_task(self, pool_variables, context, key):
            calls.append(("start", int(context.task)))
            return jax.tree.map(lambda x: x + 1, pool_variables)

        def end_task(self, pool_variables, context):
            calls.append(("end", int(context.task)))
            return jax.tree.map(lambda x: x + 2, pool_variables)

    learner = replace(learner, network=replace(learner.network, learner=Recording()))
    started = learner.start_task(variables, context(2, 4, task=1), jax.random.key(0))
    ended = learner.end_task(variables, context(2, 4, task=1))
    assert calls == [("start", 1), ("end", 1)]
    for change, after in ((1, started), (2, ended)):
        jax.tree.map(
            lambda old, new, by=change: np.testing.assert_array_equal(new, old + by),
            variables["prompts"],
            after["prompts"],
        )
        for part in ("head", "student"):
            jax.tree.map(np.testing.assert_array_equal, after[part], variables[part])
