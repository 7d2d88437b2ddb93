"""EfficientNet-Lite: parameter counts, TensorFlow's padding, torch-named weights."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cdl_jax.errors import UserError
from cdl_jax.models import efficientnet_lite, weights
from cdl_jax.models.modules import families
from tests.support.sections import checked

CHEAP = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}


def shapes_of(name="efficientnet_lite0", num_classes=1000, **changes):
    section = checked("network", families.network_options(name), **changes)
    module = efficientnet_lite.build(section, num_classes)
    images = jnp.zeros((2, section.image_size, section.image_size, 3))
    return module, jax.eval_shape(module.init, jax.random.key(0), images), images


def random_variables(shapes, seed=0):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: np.abs(rng.normal(size=leaf.shape)).astype(np.float32), shapes)


@pytest.mark.parametrize(("number", "count"), [(0, 4_652_008), (2, 6_092_072), (4, 13_006_568)])
def test_named_networks_have_the_published_number_of_parameters(number, count):
    module, shapes, images = shapes_of(f"efficientnet_lite{number}", image_size=32)
    assert sum(leaf.size for leaf in jax.tree.leaves(shapes["params"])) == count
    logits, out = jax.eval_shape(module.apply, shapes, images)
    assert logits.shape == (2, 1000) and out["features"].shape == (2, 1280)
    assert out["shared"].shape[1:3] == out["stage3"].shape[1:3] == (4, 4) and out["stage7"].shape[1:3] == (1, 1)


def depthwise_convolution(x, kernel, stride):
    """Convolves each channel of `[height, height, channels]` by `[k, k, 1, channels]`.

    The padding makes the output `1 / stride` of the input. An odd row of padding is below, an odd column to the right.
    """
    side, size = len(x), len(kernel)
    out = -(-side // stride)
    pad = max((out - 1) * stride + size - side, 0)
    padded = np.pad(x, ((pad // 2, pad - pad // 2),) * 2 + ((0, 0),))
    rows = range(0, out * stride, stride)
    return np.array([[(padded[i : i + size, j : j + size] * kernel[:, :, 0]).sum((0, 1)) for j in rows] for i in rows])


@pytest.mark.parametrize(("side", "kernel", "stride"), [(6, 3, 2), (6, 5, 2), (5, 3, 2), (5, 5, 1)])
def test_a_block_equals_numpy(side, kernel, stride):
    rng = np.random.default_rng(side + kernel)
    x = rng.normal(size=(1, side, side, 4)).astype(np.float32)
    block = efficientnet_lite.Block(4, kernel, stride, 6, 0.5)
    variables = random_variables(jax.eval_shape(partial(block.init, train=False), jax.random.key(0), x), seed=1)
    params, stats = variables["params"], variables["batch_stats"]
    params["depthwise"]["kernel"] -= 0.7  # of both signs

    def normalize(y, name):
        y = (y - stats[name]["mean"]) / np.sqrt(stats[name]["var"] + 1e-3)
        return y * params[name]["scale"] + params[name]["bias"]

    y = np.clip(normalize(x[0] @ params["expand"]["kernel"][0, 0], "bn0"), 0, 6)
    y = np.clip(normalize(depthwise_convolution(y, params["depthwise"]["kernel"], stride), "bn1"), 0, 6)
    y = normalize(y @ params["project"]["kernel"][0, 0], "bn2") + (x[0] if stride == 1 else 0)
    output = jax.jit(block.apply, static_argnums=2).lower(variables, x, False).compile(CHEAP)(variables, x)
    np.testing.assert_allclose(output[0], y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("shape", "size", "stride"), [((7, 4), 5, 2), ((4, 6), 3, 1), ((1, 3), 5, 2)])
def test_depthwise_equals_the_grouped_convolution(shape, size, stride):
    x = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    layer = efficientnet_lite.Depthwise(size, stride)
    variables = layer.init(jax.random.key(0), x)
    expected = nn.Conv(3, (size, size), stride, "SAME", use_bias=False, feature_group_count=3).apply(variables, x)
    np.testing.assert_allclose(layer.apply(variables, x), expected, atol=1e-5)


def test_running_statistics_have_momentum_0_99():
    block, x = efficientnet_lite.Block(2, 3, 1, 1, 0.0), np.random.default_rng(0).normal(3, 2, (4, 4, 4, 2))
    variables = block.init(jax.random.key(0), x, False)
    _, new = block.apply(variables, x, True, mutable=["batch_stats"])
    y = np.stack([depthwise_convolution(one, np.asarray(variables["params"]["depthwise"]["kernel"]), 1) for one in x])
    np.testing.assert_allclose(new["batch_stats"]["bn1"]["mean"], 0.01 * y.mean((0, 1, 2)), rtol=1e-4)
    np.testing.assert_allclose(new["batch_stats"]["bn1"]["var"], 0.99 + 0.01 * y.var((0, 1, 2)) * 64 / 63, rtol=1e-4)


def torch_state(values):
    """Returns a state dict in efficientnet_lite_pytorch's names and torch's layouts."""
    ends = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
    state = {"_bn0.num_batches_tracked": np.int64(3)}
    for path, array in flatten_dict(values).items():
        array = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
        name = efficientnet_lite.torch_name("/".join(path[1:-1]))
        state[f"{name}.{ends.get(path[-1], path[-1])}"] = array
    return state


def test_weights_under_torchs_names_load_unchanged(tmp_path):
    _, shapes, _ = shapes_of(width=0.25, num_classes=5, image_size=32)
    values = random_variables(shapes)
    state = torch_state(values)
    assert {name.split(".")[0] for name in state} == {"_conv_stem", "_bn0", "_blocks", "_conv_head", "_bn1", "_fc"}
    block_layers = {tuple(name.split(".")[1:3]) for name in state if name.startswith("_blocks.")}
    assert {int(number) for number, _ in block_layers} == set(range(16))  # counted through all stages
    layers = {layer for number, layer in block_layers if number == "15"}
    assert layers == {"_expand_conv", "_bn0", "_depthwise_conv", "_bn1", "_project_conv", "_bn2"}
    assert {layer for number, layer in block_layers if number == "0"} == layers - {"_expand_conv", "_bn0"}
    assert state["_blocks.15._depthwise_conv.weight"].shape == (288, 1, 3, 3) and state["_fc.weight"].shape == (5, 1280)
    np.savez(tmp_path / "state.npz", **state)
    loaded = weights.load_network(str(tmp_path / "state.npz"), shapes, "network.weights", efficientnet_lite.torch_name)
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, values))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"width": 0.0}, "network.width=0.0 must be above 0"),
        ({"depth": 0.5}, "network.depth=0.5 must be at least 1"),
        ({"dropout": 1.0}, r"network.dropout=1.0 must lie in \[0, 1\)"),
        ({"drop_path": 1.0}, r"network.drop_path=1.0 must lie in \[0, 1\)"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        shapes_of(**changes)
    with pytest.raises(UserError, match="no network of the name 'x'"):
        families.network_options("x", (efficientnet_lite,))
