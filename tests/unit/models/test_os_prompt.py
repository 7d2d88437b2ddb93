"""OS-Prompt: prompts selected by class tokens of the same pass, operation counts."""

import jax
import numpy as np
import pytest

from cdl_jax.errors import UserError
from cdl_jax.methods.base import join
from cdl_jax.models.learners import os_prompt
from cdl_jax.models.vit import Prompt
from tests.support.contexts import context
from tests.support.learner_runs import (
    DIM,
    LABELS,
    build,
    inputs_of,
    linear,
    network_of,
    outputs,
    plain_features,
    take_steps,
)

SIZES = {"learner.pool": 4, "learner.length": 2, "learner.layers": 2}


def normalized(x):
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def prompt_of(params, layer, token, rows=4):
    """Returns weights and prompt of a block for its class tokens, in float64."""
    weights = normalized(np.float64(token)) @ normalized(np.float64(params[f"keys_{layer}"][:rows])).T
    prompt = np.einsum("bk,kld->bld", weights, params[f"prompts_{layer}"][:rows]).astype(np.float32)
    return weights, Prompt(prefix=(prompt[:, :1], prompt[:, 1:]))


def test_each_prompt_is_selected_by_the_class_token_at_the_input_of_its_block():
    experiment = build("os_prompt", **SIZES)
    history, frozen = take_steps(experiment, 2)
    own = join(frozen, history[-1])["student"]
    rng = np.random.default_rng(0)
    params = {name: rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in own["prompts"].items()}
    own["prompts"] = params
    _, plain = plain_features(experiment, own["backbone"])
    weights, prompts = {}, {}
    weights[0], prompts[0] = prompt_of(params, 0, plain["class_token_0"])
    _, out = plain_features(experiment, own["backbone"], prompts)
    weights[1], prompts[1] = prompt_of(params, 1, out["block_0/tokens"][:, 0])
    features, _ = plain_features(experiment, own["backbone"], prompts)
    found = outputs(experiment, own)
    np.testing.assert_allclose(found["logits"], linear(own["head"], features), rtol=1e-3, atol=1e-4)
    for layer in (0, 1):
        np.testing.assert_allclose(
            found["prompts"].selected[f"layer_{layer}"], np.abs(weights[layer]), rtol=1e-3, atol=1e-5
        )
    assert np.ptp(plain["class_token_0"], axis=0).max() == 0 < np.ptp(weights[1], axis=0).max()


def test_components_of_the_task_alone_are_trained_and_those_of_later_tasks_are_unused():
    experiment = build("os_prompt", **SIZES)
    history, _ = take_steps(experiment, 2)
    for name, leaf in history[-1]["student"]["prompts"].items():
        assert leaf.shape[0] == 4 and not leaf[2:].any(), name
        if name != "keys_0":  # the class token of block 0 is that of all images
            assert np.abs(leaf[:2] - history[0]["student"]["prompts"][name][:2]).max() > 1e-6, name
    started = experiment.method.models.student.learner.start_task(
        {"params": history[-1]["student"]["prompts"]}, context(task=1), jax.random.key(0)
    )["params"]
    np.testing.assert_allclose(np.linalg.norm(started["keys_1"][2:], axis=1), 1, rtol=1e-5)


def test_the_regularization_compares_the_weights_with_those_of_a_reference():
    experiment = build("os_prompt", **SIZES, **{"learner.regularization": 3.0})
    network = network_of(experiment)
    assert network.learner.uses_query and not build("os_prompt", **SIZES).method.models.student.learner.uses_query
    variables = jax.device_get(network.init(jax.random.key(0), DIM))
    rng = np.random.default_rng(1)
    params = {name: rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in variables["prompts"].items()}
    query = rng.normal(size=(len(LABELS), DIM)).astype(np.float32)
    run = jax.jit(lambda v, t: network(v, inputs_of(experiment), query, context(0, 2), t), static_argnums=1)
    out = jax.device_get(run({**variables, "prompts": params}, True))
    expected = 0.0
    for layer in (0, 1):
        both = []
        for token in (out[f"class_token_{layer}"], query):
            scores, _ = prompt_of(params, layer, token, rows=2)  # of the first task
            both.append(np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True))
        expected += ((both[0] - both[1]) ** 2).sum(axis=1).mean()
    assert out["prompts"].loss == pytest.approx(3 * expected, rel=1e-4)
    assert run({**variables, "prompts": params}, False)["prompts"].loss == 0


def test_a_reference_of_another_width_is_refused():
    options = type("Options", (), {"pool": 4, "length": 2, "layers": 1, "regularization": 1e-4})
    with pytest.raises(UserError, match="learner.regularization=0.0001 compares class tokens of width 8 with queries"):
        os_prompt.build(options, dim=8, key_dim=6, depth=2, num_tasks=2)


def test_a_prediction_has_at_most_055_of_the_operations_of_two_passes():
    sizes = {"student.dim": 32, "student.depth": 4, "student.mlp_ratio": 4.0, **SIZES}
    operations = {}
    for learner in ("coda", "os_prompt"):
        method = build(learner, **sizes).method
        variables = jax.eval_shape(method.init, jax.random.key(0))
        images = jax.ShapeDtypeStruct((8, 8, 8, 3), np.float32)
        predict = jax.jit(lambda v, x, m=method: m.predict(v, x, context(2, 4, task=1))[0]["student"])
        operations[learner] = predict.lower(variables, images).compile().cost_analysis()["flops"]
    assert 0.45 < operations["os_prompt"] / operations["coda"] <= 0.55
