"""Slim residual networks with one and two heads.

The tests cover sizes, padded shortcuts, initial values and the authors' names.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cdl_jax.errors import UserError
from cdl_jax.models import resnet, slim_resnet, weights
from cdl_jax.models.modules import families, two_heads
from cdl_jax.models.modules.conv import apply
from tests.support.sections import checked

IMAGES = jnp.asarray(np.random.default_rng(0).normal(size=(4, 8, 8, 3)), jnp.float32)


def build(name, classes=10, **changes):
    return slim_resnet.build(checked("network", families.network_options(name), **changes), classes)


def small_network():
    """Returns a network of two blocks with two heads, and random variables for it."""
    module = two_heads.TwoHeads(build("slim_resnet18", 5, width=2, depths=(1, 1)), 5)
    shapes, rng = jax.eval_shape(module.init, jax.random.key(0), IMAGES), np.random.default_rng(1)
    return module, jax.tree.map(lambda leaf: rng.uniform(0.1, 1, leaf.shape).astype(np.float32), shapes)


@pytest.mark.parametrize(
    ("name", "one_head", "two", "dim"),
    [
        ("slim_resnet18", 1_109_240, 1_125_340, 160),
        ("resnet32_padded", 470_004, 476_504, 64),
        ("resnet18_32px", 11_220_132, 11_271_432, 512),
        ("resnet34_32px", 21_328_292, 21_379_592, 512),
    ],
)
def test_networks_for_100_classes_have_the_published_number_of_parameters(name, one_head, two, dim):
    backbone, images = build(name, 100), jnp.zeros((4, 32, 32, 3))
    for module, count in ((backbone, one_head), (two_heads.TwoHeads(backbone, 100), two)):
        variables = jax.eval_shape(module.init, jax.random.key(0), images)
        assert sum(leaf.size for leaf in jax.tree.leaves(variables["params"])) == count
    ((cl, st), out) = jax.eval_shape(module.apply, variables, images)
    assert cl.shape == st.shape == (4, 100) and out["features"].shape == (4, dim)
    last = f"layer{3 if name == 'resnet32_padded' else 4}"
    assert out[last].shape == (4, *((8, 8) if last == "layer3" else (4, 4)), dim)


def test_a_padded_shortcut_is_every_second_pixel_between_channels_of_zeros():
    block, x = resnet.Block(8, 2, False, 1, False, padded=True), jnp.abs(IMAGES[..., [0, 1, 2, 0]])
    shapes = jax.eval_shape(partial(block.init, train=False), jax.random.key(0), x)
    variables = jax.tree.map(jnp.zeros_like, shapes)  # without its other branch
    y = jax.jit(partial(block.apply, train=False))(variables, x)
    assert (y[..., 2:6] == x[:, ::2, ::2]).all()
    assert not y[..., :2].any() and not y[..., 6:].any()
    assert variables["params"].keys() == {"conv1", "bn1", "conv2", "bn2"}


def test_convolutions_start_with_the_initial_values_of_torch_or_he():
    def initial_kernels(name, stages):
        tail = build(name, width=16, depths=(1,) * stages).tail

        @jax.jit
        def init(key):
            params = tail.init(key, jnp.zeros((1, 2, 2, 32)), False)["params"]
            return params["stages"][f"layer{stages}_0"]["conv2"]["kernel"], params["classifier"]["kernel"]

        return (np.asarray(kernel) for kernel in init(jax.random.key(0)))

    kernel, classifier = initial_kernels("slim_resnet18", 4)
    bound = (128 * 9) ** -0.5
    assert 0.99 * bound < abs(kernel).max() <= bound and kernel.std() == pytest.approx(bound / 3**0.5, rel=0.01)
    kernel, classifier = initial_kernels("resnet32_padded", 3)
    assert kernel.std() == pytest.approx((2 / (64 * 9)) ** 0.5, rel=0.02)
    assert 0.9 * 64**-0.5 < abs(classifier).max() <= 64**-0.5


def test_two_heads_read_the_same_features_and_update_the_statistics():
    module, variables = small_network()
    run = jax.jit(partial(apply, module), static_argnums=2)
    ((cl, st), out), stats = run(variables, IMAGES, True, jax.random.key(0))
    student, classifier = variables["params"]["student"], variables["params"]["backbone"]["tail"]["classifier"]
    for logits, head in ((cl, classifier), (st, student)):
        np.testing.assert_allclose(logits, out["features"] @ head["kernel"] + head["bias"], rtol=1e-5)
    assert jax.tree.structure(stats["batch_stats"]) == jax.tree.structure(variables["batch_stats"])
    backbone_variables = {kind: leaves["backbone"] for kind, leaves in variables.items()}
    logits, _ = jax.jit(module.backbone.apply)(backbone_variables, IMAGES)
    ((cl, _), _), no_stats = run(variables, IMAGES, False, None)
    np.testing.assert_allclose(cl, logits, rtol=1e-5)
    assert no_stats == {}


def test_the_authors_state_dicts_are_read(tmp_path):
    names = {"kernel": "weight", "scale": "weight", "bias": "bias", "mean": "running_mean", "var": "running_var"}
    _, both = small_network()
    variables = {kind: leaves["backbone"] for kind, leaves in both.items()}
    state = {}
    for path, leaf in flatten_dict(variables).items():
        turned = leaf.T if leaf.ndim == 2 else leaf.transpose(3, 2, 0, 1) if leaf.ndim == 4 else leaf
        state[f"{slim_resnet.torch_name('/'.join(path[1:-1]))}.{names[path[-1]]}"] = turned
    assert {"conv1.weight", "bn1.running_var", "layer2.0.shortcut.1.bias", "linear.bias"} < state.keys()
    np.savez(tmp_path / "theirs.npz", **state, **{"bn1.num_batches_tracked": np.int64(3)})
    zeros = jax.tree.map(np.zeros_like, variables)
    loaded = weights.load_network(str(tmp_path / "theirs.npz"), zeros, "network.weights", slim_resnet.torch_name)
    jax.tree.map(np.testing.assert_array_equal, loaded, variables)


def test_two_heads_have_the_authors_names():
    def name(path):
        return two_heads.torch_name(path, slim_resnet.torch_name, "slim_res18.")

    assert name("student") == "student"
    assert name("backbone/tail/classifier") == "cl"
    assert name("backbone/stem/conv1") == "slim_res18.conv1"
    assert name("backbone/stem/stages/layer3_1/bn2") == "slim_res18.layer3.1.bn2"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"shortcut": "none"}, "network.shortcut='none'"),
        ({"init": "zeros"}, "network.init='zeros'"),
        ({"depths": (2,)}, r"network.depths=\(2,\)"),
        ({"width": 0}, "network.width=0 must be at least 1"),
    ],
)
def test_options_that_do_not_fit_are_refused(changes, message):
    with pytest.raises(UserError, match=message):
        build("slim_resnet18", **changes)
    with pytest.raises(UserError, match="did you mean 'slim_resnet18'"):
        families.network_options("slim_resnet19", (slim_resnet,))
