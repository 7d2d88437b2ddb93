"""APER: first-task adaptation, prototypes of the adapted and pretrained backbone."""

import math

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cdl_jax.methods.base import join
from cdl_jax.models.learners.shared import bottlenecks, first_task
from cdl_jax.runtime.checkpoint import Checkpoints
from tests.support.learner_runs import (
    DIM,
    LABELS,
    build,
    inputs_of,
    network_of,
    outputs,
    plain_features,
    train,
)

SIZES = {"learner.rank": 2, "learner.tokens": 3, "train.epochs": 1, "optim.name": "adam", "optim.learning_rate": 0.01}


def cosines(features, vectors):
    features, vectors = np.float64(features), np.float64(vectors)
    return features @ vectors.T / np.linalg.norm(features, axis=1)[:, None] / np.linalg.norm(vectors, axis=1)


@pytest.mark.parametrize("adaptation", ["adapter", "ssf"])
def test_prototypes_are_means_of_adapted_and_pretrained_features(adaptation, tmp_path):
    experiment = build("aper", **{"learner.adaptation": adaptation, **SIZES})
    run = train(experiment, tmp_path)
    assert not run.compiles_again
    with Checkpoints(tmp_path, read_only=True) as checkpoints:
        first = jax.device_get(checkpoints.restore_task(0, experiment.abstract_variables()[0]))
    student = run.after["student"]
    for path, leaf in flatten_dict(student["prompts"]).items():
        assert np.abs(leaf - flatten_dict(run.before["student"]["prompts"])[path]).max() > 1e-7, path
    jax.tree.map(np.testing.assert_array_equal, first["student"]["prompts"], student["prompts"])
    own = join(run.frozen, run.after)["student"]
    out = outputs(experiment, own)
    pretrained, _ = plain_features(experiment, own["backbone"])
    assert np.abs(out["class_token"] - pretrained).max() > 1e-4
    features = np.concatenate([out["class_token"], pretrained], axis=1)
    means = np.stack([np.float64(features)[LABELS == c].mean(axis=0) for c in range(4)])
    np.testing.assert_allclose(student["state"]["head"]["prototypes"], means, rtol=1e-4, atol=1e-4)
    classifier = student["head"]["classifier"]
    expected = classifier["scale"] * cosines(features, means)
    np.testing.assert_allclose(out["logits"], expected, rtol=1e-3, atol=1e-4)
    trained = outputs(experiment, own, train=True)
    if adaptation != "adapter":  # whose training has dropout
        expected = classifier["scale"] * cosines(out["class_token"], classifier["kernel"].T)
        np.testing.assert_allclose(trained["logits"], expected, rtol=1e-3, atol=1e-4)


def test_an_adapter_adds_its_output_to_that_of_the_mlp():
    rng = np.random.default_rng(0)
    params = bottlenecks.init_bottlenecks(jax.random.key(0), 2, DIM, 3)
    assert not np.any(params["up"]) and 0 < np.abs(params["down"]).max() <= DIM**-0.5
    params = {name: rng.normal(size=leaf.shape).astype(np.float32) for name, leaf in params.items()}
    x, y = rng.normal(size=(2, 4, 5, DIM)).astype(np.float32)
    adapter = bottlenecks.parallel_adapters(params, 0.1, 0.5, None)[1]
    assert adapter.attention is None
    hidden = np.maximum(x @ params["down"][1] + params["down_bias"][1], 0)
    expected = y + 0.1 * (hidden @ params["up"][1] + params["up_bias"][1])
    np.testing.assert_allclose(adapter.mlp(x, y), expected, rtol=1e-4, atol=1e-5)


def test_dropout_scales_what_it_keeps():
    ones = {"down": np.eye(4)[None], "down_bias": np.zeros((1, 4)), "up": np.eye(4)[None], "up_bias": np.zeros((1, 4))}
    ones = {name: leaf.astype(np.float32) for name, leaf in ones.items()}
    x = np.ones((50, 20, 4), np.float32)
    dropped = bottlenecks.parallel_adapters(ones, 1.0, 0.25, jax.random.key(0))[0].mlp(x, 0 * x)
    assert np.unique(np.round(dropped, 5)).tolist() == pytest.approx([0, 1 / 0.75], rel=1e-4)
    assert 0.22 < np.mean(dropped == 0) < 0.28


def test_scale_and_shift_are_applied_to_the_output_of_each_layer():
    experiment = build("aper", **{"learner.adaptation": "ssf", **SIZES})
    backbone = jax.device_get(network_of(experiment).backbone.init(jax.random.key(1), inputs_of(experiment)))["params"]
    initial = jax.device_get(first_task.init_scales_and_shifts(jax.random.key(0), backbone))
    scales, shifts = flatten_dict(initial["scale"]), flatten_dict(initial["shift"])
    layers = {("norm1",), ("norm2",), ("attn", "qkv"), ("attn", "proj"), ("mlp", "fc1"), ("mlp", "fc2")}
    blocks = {(f"block_{i}", *layer) for i in range(2) for layer in layers}
    assert scales.keys() == shifts.keys() == blocks | {("patch_embed",), ("norm",)}
    numbers = np.concatenate([leaf.ravel() for leaf in scales.values()])
    assert abs(numbers.mean() - 1) < 0.01 and 0.015 < numbers.std() < 0.025
    new = first_task.scale_and_shift(backbone, initial["scale"], initial["shift"])
    x = np.random.default_rng(0).normal(size=(3, DIM))
    old_layer, new_layer = (tree["block_1"]["attn"]["qkv"] for tree in (backbone, new))
    y = x @ old_layer["kernel"] + old_layer["bias"]
    expected = y * scales["block_1", "attn", "qkv"] + shifts["block_1", "attn", "qkv"]
    np.testing.assert_allclose(x @ new_layer["kernel"] + new_layer["bias"], expected, rtol=1e-4, atol=1e-5)


def test_tokens_of_a_block_are_read_by_its_attention_and_then_dropped():
    experiment = build("aper", **{"learner.adaptation": "vpt", **SIZES})
    network = network_of(experiment)
    variables = jax.device_get(network.init(jax.random.key(0), DIM))
    tokens = variables["prompts"]["tokens"]
    bound = (6 / (3 * 4 * 4 + DIM)) ** 0.5
    assert tokens.shape == (2, 3, DIM) and 0.7 * bound < np.abs(tokens).max() <= bound
    tokens = 3 * tokens
    out = outputs(experiment, {**variables, "prompts": {"tokens": tokens}})
    # Block by block: the tokens are put before the others, pass the block, and are removed.
    images, backbone = inputs_of(experiment), variables["backbone"]
    patches = images.reshape(len(LABELS), 2, 4, 2, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(len(LABELS), 4, 48)
    x = patches @ backbone["patch_embed"]["kernel"] + backbone["patch_embed"]["bias"]
    x = np.concatenate([np.tile(backbone["cls_token"], (len(LABELS), 1, 1)), x], axis=1) + backbone["pos_embed"]
    for i, rows in enumerate(tokens):
        joined = np.concatenate([np.tile(rows, (len(LABELS), 1, 1)), x], axis=1)
        x = numpy_block(backbone[f"block_{i}"], joined)[:, 3:]
        np.testing.assert_allclose(out[f"block_{i}/tokens"], x, rtol=1e-3, atol=1e-4)
    assert out["attention_1"].shape == (len(LABELS), 2, 5, 5) and (out["attention_1"].sum(axis=-1) < 1).all()


def numpy_block(params, x):
    """Returns the output of a Transformer block with two heads in float64."""

    def dense(layer, z):
        return z @ np.float64(layer["kernel"]) + layer["bias"]

    def norm(layer, z):
        z = z - z.mean(axis=-1, keepdims=True)
        return z / np.sqrt((z**2).mean(axis=-1, keepdims=True) + 1e-6) * layer["scale"] + layer["bias"]

    x = np.float64(x)
    query, key, value = (
        t.reshape(*x.shape[:2], 2, -1)
        for t in np.split(dense(params["attn"]["qkv"], norm(params["norm1"], x)), 3, axis=-1)
    )
    scores = np.einsum("bqhd,bkhd->bhqk", query, key) / np.sqrt(query.shape[-1])
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True)
    mixed = np.einsum("bhqk,bkhd->bqhd", weights, value).reshape(x.shape)
    x = x + dense(params["attn"]["proj"], mixed)
    hidden = dense(params["mlp"]["fc1"], norm(params["norm2"], x))
    erf = np.vectorize(math.erf)
    return x + dense(params["mlp"]["fc2"], hidden * (1 + erf(hidden / np.sqrt(2))) / 2)
