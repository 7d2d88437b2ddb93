"""DeiT and RegNet: parameter counts, stages, torch's state dicts, named outputs.

tests/parity compares the outputs with those of the original programs.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from ml_collections import ConfigDict

from cdl_jax import plugins
from cdl_jax.errors import UserError
from cdl_jax.models import deit, regnet, weights
from cdl_jax.models.modules import families
from cdl_jax.options import defaults
from cdl_jax.runtime import operations
from tests.support.sections import checked

COUNTS = {  # of 1000 classes
    "deit_ti_conv": 6_633_104,
    "deit_s_conv": 23_797_520,
    "deit_b_conv": 89_976_848,
    "deit_ti": 5_717_416,
    "deit_s": 22_050_664,
    "deit_s_distilled": 22_436_432,
    "regnety_004": 4_344_144,
    "regnety_016": 11_202_430,
    "regnety_032": 19_436_338,
    "regnety_160": 83_590_140,
    "regnetx_008": 7_259_656,
    "regnetx_016": 9_190_136,
}


def shapes_of(name, num_classes=1000, **changes):
    section = checked("network", families.network_options(name), **changes)
    module = plugins.load_plugin("models", section.family).build(section, num_classes)
    images = jnp.zeros((2, section.image_size, section.image_size, 3))
    return module, jax.eval_shape(module.init, jax.random.key(0), images), images


@pytest.mark.parametrize("name", COUNTS)
def test_named_networks_have_the_published_number_of_parameters(name):
    _, shapes, _ = shapes_of(name)
    assert sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(shapes["params"])) == COUNTS[name]


def test_stages_follow_the_rule_of_the_paper():
    big = ConfigDict(defaults(families.network_options("regnety_160")))
    assert regnet.compute_stages(big) == [(224, 2), (448, 4), (1232, 11), (3024, 1)]


SMALL = {
    "deit_ti_conv": {"dim": 8, "heads": 2, "depth": 1, "image_size": 32, "stem_width": 4},
    "deit_ti_distilled": {"dim": 8, "heads": 2, "depth": 1, "image_size": 32},
    "regnety_160": {"depth": 3, "w0": 8, "wa": 8.0, "wm": 2.0, "group_width": 8, "image_size": 32},
}


@pytest.mark.parametrize("name", SMALL)
def test_weights_of_a_state_dict_load_unchanged(name, tmp_path):
    _, shapes, _ = shapes_of(name, 5, **SMALL[name])
    rng, family = (
        np.random.default_rng(0),
        plugins.load_plugin("models", families.network_options(name)["family"].default),
    )
    values = jax.tree.map(lambda leaf: np.float32(rng.normal(size=leaf.shape)), shapes)
    ends = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    state = {"stem.bn.num_batches_tracked": np.int64(3)}
    for path, array in flatten_dict(values).items():
        module, leaf = "/".join(path[1:-1]), path[-1]
        if array.ndim == 4:
            array = array.transpose(3, 2, 0, 1)
        elif leaf == "kernel":
            array = array.T[:, :, None, None] if "se_" in module else array.T
        state[f"{family.torch_name(module)}.{ends.get(leaf, leaf)}" if module else leaf] = array
    path = tmp_path / "state.npz"
    np.savez(path, **state)
    loaded = weights.load_network(str(path), shapes, "teacher.weights", family.torch_name)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, values))
    _, other, _ = shapes_of(name, 3, **SMALL[name])
    with_new_head = flatten_dict(weights.load_network(str(path), other, "teacher.weights", family.torch_name))
    assert {p[-2] for p, leaf in with_new_head.items() if isinstance(leaf, jax.ShapeDtypeStruct)} <= {
        "head", "head_dist", "classifier",
    }  # fmt: skip
    weights.save(tmp_path / "own.npz", values)
    again = weights.load_network(str(tmp_path / "own.npz"), shapes, "teacher.weights", family.torch_name)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, values))
    state.pop(next(name for name in state if name.endswith("weight")))
    np.savez(path, **state)
    with pytest.raises(UserError, match="1 missing"):
        weights.load_network(str(path), shapes, "teacher.weights", family.torch_name)


@pytest.mark.parametrize("name", ["deit_ti_conv", "deit_ti_distilled", "deit_ti"])
def test_positions_are_resized_to_another_image_size(name, tmp_path):
    common = {"dim": 8, "heads": 2, "depth": 1, "stem_width": 4 * ("conv" in name)}
    _, small, _ = shapes_of(name, 5, **common, image_size=32)
    _, large, _ = shapes_of(name, 5, **common, image_size=64)
    rng = np.random.default_rng(0)
    values = jax.tree.map(lambda leaf: np.float32(rng.normal(size=leaf.shape)), small)
    tokens = 1 if name == "deit_ti" else 2
    table = rng.normal(size=(1, tokens + 4, 8)).astype(np.float32)
    table[0, tokens:] = 3.0  # a flat grid stays flat
    values["params"]["pos_embed"] = table
    ends = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    state = {}
    for path, array in flatten_dict(values).items():
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T if path[-1] == "kernel" else array
        module = "/".join(path[1:-1])
        state[f"{deit.torch_name(module)}.{ends.get(path[-1], path[-1])}" if module else path[-1]] = array
    np.savez(tmp_path / "state.npz", **state)
    loaded = weights.load_network(str(tmp_path / "state.npz"), large, "student.weights", deit.torch_name)
    positions = loaded["params"]["pos_embed"]
    assert positions.shape == (1, tokens + 16, 8)
    assert np.array_equal(positions[0, :tokens], table[0, :tokens])
    assert np.allclose(positions[0, tokens:], 3.0, atol=1e-6)


def test_regnet_in_bfloat16_convolves_in_bfloat16_with_nearly_equal_features():
    features, sizes = {}, {"depth": 2, "w0": 8, "wa": 8.0, "wm": 2.0, "group_width": 8, "image_size": 16}
    cheap = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    for dtype in ("float32", "bfloat16"):
        module, shapes, images = shapes_of("regnety_160", 5, **sizes, dtype=dtype)
        rng = np.random.default_rng(0)
        variables = jax.tree.map(lambda leaf, rng=rng: np.abs(rng.normal(size=leaf.shape)).astype(leaf.dtype), shapes)
        images = rng.random(images.shape, np.float32)
        convolutions = re.findall(
            r"(\w+)\[[\d,]+\] = conv_general_dilated", str(jax.make_jaxpr(module.apply)(variables, images))
        )
        assert len(convolutions) > 5 and set(convolutions) == {"bf16" if dtype == "bfloat16" else "f32"}
        logits, out = jax.jit(module.apply).lower(variables, images).compile(cheap)(variables, images)
        assert logits.dtype == out["features"].dtype == jnp.float32
        features[dtype] = np.asarray(out["features"])
    difference = np.abs(features["bfloat16"] - features["float32"]).max() / np.abs(features["float32"]).max()
    assert 1e-5 < difference < 0.05


def test_distilled_logits_are_the_mean_of_both_heads():
    module, _, images = shapes_of("deit_ti_distilled", 5, **SMALL["deit_ti_distilled"])
    variables = jax.jit(module.init)(jax.random.key(0), images)
    images = jax.random.normal(jax.random.key(1), images.shape)
    logits, out = jax.jit(module.apply)(variables, images)
    assert np.allclose(logits, (out["logits_class"] + out["logits_distilled"]) / 2)
    assert np.abs(out["logits_class"] - out["logits_distilled"]).max() > 1e-3
    assert out["patch_tokens"].shape == (2, 4, 8)
    assert np.array_equal(out["tokens"][:, 2:], out["patch_tokens"])


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("deit_ti", {"heads": 5}, "cannot be split over heads=5"),
        ("deit_ti", {"image_size": 100}, "must be a multiple of patch_size=16"),
        ("deit_ti", {"distillation": "x"}, "use 'mean', 'learned' or 'none'"),
        ("deit_ti", {"drop_path": 1.0}, r"network.drop_path=1.0 must lie in \[0, 1\)"),
        ("deit_ti", {"mlp_ratio": 0.0}, "DeiT mlp_ratio=0.0 gives the MLP a hidden width of 0"),
        ("regnety_160", {"wm": 1.0}, "network.wm=1.0 must be above 1"),
        ("regnety_160", {"dtype": "float16"}, "network.dtype='float16': use 'float32' or 'bfloat16'"),
    ],
)
def test_options_that_do_not_fit_are_refused(name, changes, message):
    with pytest.raises(UserError, match=message):
        shapes_of(name, 5, **changes)


def test_unknown_names_are_refused():
    for family in (deit, regnet):
        with pytest.raises(UserError, match="of the name 'x'"):
            families.network_options("x", (family,))


@pytest.mark.parametrize("name", ["deit_ti_conv", "deit_ti_distilled"])
def test_heads_read_tokens_that_the_last_block_computes_alone(name):
    network, shapes, _ = shapes_of(name, 5, **{**SMALL[name], "depth": 2})
    rng = np.random.default_rng(3)
    variables = jax.tree.map(lambda x: jnp.asarray(np.abs(rng.normal(0, 0.3, x.shape)), jnp.float32), shapes)
    images, weight = rng.normal(size=(2, 32, 32, 3)).astype(np.float32), rng.normal(size=(2, 2, 8)).astype(np.float32)

    def loss(variables, complete):
        _, out = network.apply(variables, images)
        alone = jnp.stack([out["class_token"], out["distillation_token"]], axis=1)
        return ((out["tokens"][:, :2] if complete else alone) * weight).sum()

    both = jax.jit(jax.value_and_grad(loss), static_argnums=1)
    (value, gradients), (full, expected) = both(variables, False), both(variables, True)
    assert float(value) == pytest.approx(float(full), rel=1e-6)
    for one, other in zip(jax.tree.leaves(gradients), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=5e-7 * max(1, np.abs(other).max()))

    def work(output):
        return operations.count(lambda v: output(network.apply(v, images)[1]), variables).flops

    patches, tokens = 2 * 4, 2 + 4
    saved = 2 * patches * (2 * 8 * 8 + 2 * 8 * 32) + 4 * patches * tokens * 8
    both_heads = lambda out: out["logits_class"] + out["logits_distilled"]  # noqa: E731
    assert work(lambda out: (both_heads(out), out["tokens"])) - work(both_heads) >= saved
