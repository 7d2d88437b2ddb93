"""Convolutional families: parameters, torch's padding, batch norm, initial values."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.errors import UserError
from cdl_jax.models import densenet, resnet, vgg
from cdl_jax.models.modules import families
from cdl_jax.models.modules.batch_norm import BatchNorm
from cdl_jax.models.modules.conv import conv
from cdl_jax.plugins import load_plugin
from tests.support.sections import checked

RNG = np.random.default_rng(3)


def build(name, classes=10, **changes):
    section = checked("network", families.network_options(name), **changes)
    return load_plugin("models", section.family).build(section, classes), section


@pytest.mark.parametrize(
    ("name", "classes", "count"),
    [
        ("resnet32", 10, 466_906),
        ("resnet32", 100, 472_756),
        ("resnet110", 100, 1_170_868),
        ("wide_resnet20_8", 10, 6_848_090),
        ("vgg16", 100, 15_299_748),
        ("densenetd40k12", 10, 176_122),
        ("densenetd40k12", 100, 188_092),
        ("resnet18", 1000, 11_689_512),
        ("resnet50", 1000, 25_557_032),
    ],
)
def test_named_networks_have_the_published_number_of_parameters(name, classes, count):
    model, section = build(name, classes)
    side = min(section.image_size, 64)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, side, side, 3)))
    assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count


@pytest.mark.parametrize(
    ("name", "changes", "shapes"),
    [
        ("resnet20", {"depths": (1, 1, 1)}, {"layer1": (32, 32, 16), "shared": (16, 16, 32), "features": (64,)}),
        ("wide_resnet20_8", {"depths": (1, 1, 1)}, {"shared": (16, 16, 128), "features": (256,)}),
        ("vgg16", {"channel_unit": 2}, {"layer0": (16, 16, 2), "shared": (2, 2, 16), "features": (16,)}),
        ("densenetd40k12", {}, {"layer1": (16, 16, 48), "shared": (8, 8, 60), "features": (132,)}),
        ("resnet18", {}, {"layer1": (8, 8, 64), "shared": (4, 4, 128), "layer4": (1, 1, 512), "features": (512,)}),
    ],
)
def test_intermediate_outputs_have_names(name, changes, shapes):
    model, _ = build(name, **changes)
    images = jnp.zeros((2, 32, 32, 3))
    variables = jax.eval_shape(model.init, jax.random.key(0), images)
    logits, out = jax.eval_shape(model.apply, variables, images)
    assert logits.shape == (2, 10)
    assert {key: out[key].shape[1:] for key in shapes} == shapes


def test_convolutions_pad_on_every_side_at_stride_two():
    x = np.arange(16, dtype=np.float32).reshape(1, 4, 4, 1)
    layer = conv(1, 3, 2, name="c")
    y = layer.apply({"params": {"kernel": jnp.ones((3, 3, 1, 1))}}, x)
    padded = np.pad(x[0, :, :, 0], 1)
    expected = [[padded[i : i + 3, j : j + 3].sum() for j in (0, 2)] for i in (0, 2)]
    np.testing.assert_allclose(y[0, :, :, 0], expected)


def test_batch_norm_stores_the_unbiased_variance_and_updates_several_times_in_one_call():
    x = RNG.normal(2, 3, (4, 2, 2, 3)).astype(np.float32)
    for updates in (1, 3):
        layer = BatchNorm(updates)
        variables = layer.init(jax.random.key(0), x, False)
        y, new = layer.apply(variables, x, True, mutable=["batch_stats"])
        flat, mean, var = x.reshape(-1, 3).astype(np.float64), np.zeros(3), np.ones(3)
        for _ in range(updates):
            mean, var = 0.9 * mean + 0.1 * flat.mean(0), 0.9 * var + 0.1 * flat.var(0, ddof=1)
        np.testing.assert_allclose(new["batch_stats"]["mean"], mean, rtol=1e-5)
        np.testing.assert_allclose(new["batch_stats"]["var"], var, rtol=1e-5)
        expected = (flat - flat.mean(0)) / np.sqrt(flat.var(0) + 1e-5)
        np.testing.assert_allclose(y.reshape(-1, 3), expected, atol=1e-5)
        np.testing.assert_allclose(
            layer.apply({**variables, **new}, x, False).reshape(-1, 3), (flat - mean) / np.sqrt(var + 1e-5), rtol=1e-4,
            atol=1e-5,
        )  # fmt: skip


def test_initial_values_have_the_standard_deviation_of_the_published_program():
    def init_params(module, *shape):
        return module.init(jax.random.key(0), jnp.zeros((1, 2, 2, *shape)), False)["params"]

    group = init_params(vgg.Group(1, 128), 64)  # 3 x 3 to 128 channels: N(0, 2 / (128 * 9))
    assert float(group["conv0"]["kernel"].std()) == pytest.approx((2 / (128 * 9)) ** 0.5, rel=0.01)
    assert float(abs(group["conv0"]["kernel"]).max()) > 3.5 * (2 / (128 * 9)) ** 0.5  # not truncated
    assert not group["conv0"]["bias"].any()
    tail = init_params(vgg.Tail(32, 1, 10, 0.0, False), 256)
    assert float(tail["fc1"]["kernel"].std()) == pytest.approx(0.01, rel=0.02) and not tail["fc1"]["bias"].any()

    block = init_params(densenet.Block(1, 48, 1), 24)  # 3 x 3 from 48 channels: N(0, 2 / (48 * 9))
    assert float(block["conv2_0"]["kernel"].std()) == pytest.approx((2 / (48 * 9)) ** 0.5, rel=0.02)
    classifier = init_params(densenet.Tail(None, 100), 132)["classifier"]
    assert 0.98 * 132**-0.5 < float(abs(classifier["kernel"]).max()) <= 132**-0.5 and not classifier["bias"].any()


def test_zero_init_blocks_start_as_the_identity():
    block, x = resnet.Block(4, 1, False, 1, zero_init=True), jnp.abs(RNG.normal(size=(2, 6, 6, 4)))
    y, variables = block.init_with_output(jax.random.key(0), x, False)
    assert (y == x).all() and (variables["params"]["bn1"]["scale"] == 1).all()


def test_dropout_acts_only_in_training():
    tail, x = vgg.Tail(2, 1, 10, 0.5, False), jnp.abs(RNG.normal(size=(2, 2, 2, 16))).astype(np.float32)
    variables = jax.tree.map(lambda leaf: leaf + 0.1, tail.init(jax.random.key(0), x, False))
    first, again, other = (
        tail.apply(variables, x, True, mutable="batch_stats", rngs={"dropout": jax.random.key(seed)})[0][0]
        for seed in (0, 0, 1)
    )
    assert (first == again).all() and (first != other).any()
    assert (tail.apply(variables, x, False)[0] == tail.apply(variables, x, False)[0]).all()


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("resnet32", {"block": "wide"}, "network.block='wide'"),
        ("resnet32", {"depths": (1, 1)}, r"network.depths=\(1, 1\)"),
        ("vgg16", {"dropout": 1.0}, "network.dropout=1.0"),
        ("vgg16", {"image_size": 16}, "network.image_size=16"),
        ("densenetd40k12", {"compression": 0.0}, r"network.compression=0.0 must lie in \(0, 1\]"),
        ("densenetd40k12", {"blocks": (6,)}, r"network.blocks=\(6,\)"),
    ],
)
def test_options_that_do_not_fit_are_refused(name, changes, message):
    with pytest.raises(UserError, match=message) as error:
        build(name, **changes)
    assert "\n" not in str(error.value)


def test_the_message_for_an_unknown_network_suggests_the_closest_name():
    with pytest.raises(UserError, match="did you mean 'resnet3[24]'"):
        families.network_options("resnet33")
    with pytest.raises(UserError, match="vgg16"):
        families.network_options("vgg11", (vgg,))
