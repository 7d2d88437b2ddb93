"""`supervised` fine-tunes a pretrained network with a new head, or this head only."""

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from cdl_jax import config as base
from cdl_jax.errors import UserError
from cdl_jax.methods import supervised
from cdl_jax.methods.base import StreamInfo, join, split
from cdl_jax.models import weights
from cdl_jax.models.modules import families
from cdl_jax.models.modules.heads import is_head
from cdl_jax.models.weights import pretrained
from cdl_jax.options import check
from tests.support.contexts import context


@pytest.mark.parametrize("classes", [0, 9], ids=["no head", "a head of other classes"])
def test_backbone_is_loaded_and_head_is_new(tmp_path, classes):
    config = base.default("supervised", data="glyph_mini", network="mini_student")
    config.network.update(dim=8, depth=1, heads=2, image_size=16, weights=str(tmp_path / "weights.npz"))
    method = supervised.build(config, StreamInfo(5, (3, 2)))
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    rng = np.random.default_rng(0)
    saved = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(np.float32), shapes)["network"]["params"]
    saved["head"] = {"kernel": rng.normal(size=(8, classes)), "bias": rng.normal(size=classes)}
    pretrained.save_timm(
        tmp_path / "weights.npz", {name: leaf for name, leaf in saved.items() if classes or name != "head"}
    )
    loaded = method.load_pretrained(shapes)["network"]["params"]
    assert loaded["head"]["kernel"].shape == (8, 5)
    assert isinstance(loaded["head"]["kernel"], jax.ShapeDtypeStruct)  # a new head
    for part in set(saved) - {"head"}:
        jax.tree.map(np.testing.assert_array_equal, loaded[part], saved[part])
    (update,) = method.phases[0].updates
    paths = [path for path, _ in jax.tree_util.tree_leaves_with_path(shapes)]
    assert len(paths) > 15 and all(update.trainable(tuple(key.key for key in path)) for path in paths)


SMALL = {"depths": (1, 1, 1), "widths": (2, 3, 4), "image_size": 8}


def residual(trained="network", **network):
    """A small residual network of five classes in method `supervised`."""
    config = base.default("supervised", data="glyph_mini", network="resnet20")
    config.network.update({**SMALL, **network})
    config.supervised.trained = trained
    return supervised.build(config, StreamInfo(5, (3, 2)))


def random_variables(method, seed=0):
    rng = np.random.default_rng(seed)
    shapes = jax.eval_shape(method.init, jax.random.key(0))

    def draw(leaf):  # vectors may be variances, so they are positive
        values = rng.normal(size=leaf.shape).astype(np.float32)
        return 0.5 * values if leaf.ndim > 1 else np.abs(values)

    return jax.tree.map(draw, shapes)


@pytest.mark.parametrize("classes", [5, 9])
def test_network_with_statistics_has_a_new_head_if_its_file_has_other_classes(tmp_path, classes):
    method = residual(weights=str(tmp_path / "weights.npz"))
    shapes, saved = jax.eval_shape(method.init, jax.random.key(0)), random_variables(method)["network"]
    head = {"kernel": np.ones((4, classes), np.float32), "bias": np.zeros(classes, np.float32)}
    saved["params"]["tail"]["classifier"] = head
    weights.save(tmp_path / "weights.npz", saved)
    loaded = method.load_pretrained(shapes)["network"]
    loaded_head = loaded["params"]["tail"].pop("classifier")
    if classes == 5:
        jax.tree.map(np.testing.assert_array_equal, loaded_head, head)
    else:
        assert [isinstance(loaded_head[name], jax.ShapeDtypeStruct) for name in ("kernel", "bias")] == [True, True]
        assert loaded_head["kernel"].shape == (4, 5)
    probe = residual("head", weights=str(tmp_path / "weights.npz"))
    probe_head = probe.load_pretrained(shapes)["network"]["params"]["tail"]["classifier"]
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) and leaf.shape[-1] == 5 for leaf in probe_head.values())
    saved["params"]["tail"].pop("classifier")
    jax.tree.map(np.testing.assert_array_equal, loaded, saved)
    other = residual(weights=str(tmp_path / "weights.npz"), widths=(2, 3, 6))
    with pytest.raises(UserError, match="of another architecture"):
        other.load_pretrained(jax.eval_shape(other.init, jax.random.key(0)))


def test_linear_probe_trains_the_head_on_frozen_features():
    method, full_method = residual("head"), residual()
    variables = random_variables(method)
    mutable, frozen = split(variables, lambda path: not method.is_frozen(path))
    assert mutable == {
        "network": {"params": {"tail": {"classifier": mutable["network"]["params"]["tail"]["classifier"]}}}
    }
    assert len(jax.tree.leaves(mutable)) == 2 and "batch_stats" in frozen["network"]
    assert split(variables, lambda path: not full_method.is_frozen(path))[0].keys() == {"network"}
    assert not any(jax.tree.leaves(split(variables, full_method.is_frozen)[0]))
    (update,) = method.phases[0].updates
    assert all(update.trainable(path) for path in flatten_dict(mutable))
    images, labels = np.random.default_rng(1).random((4, 8, 8, 3), np.float32), np.array([0, 1, 2, 1])
    step_context = context(end=3)

    @jax.jit
    def learn(mutable):
        def loss(mutable):
            value, outcome = method.loss(join(frozen, mutable), {"images": images, "labels": labels}, step_context)
            return value, outcome.variables

        (value, changed), gradient = jax.value_and_grad(loss, has_aux=True)(mutable)
        _, out = method.backbone.apply(variables["network"], images)
        return value, changed, gradient, out["features"], method.predict(join(frozen, mutable), images, step_context)[0]

    value, changed, gradient, features, predicted = jax.device_get(learn(mutable))
    assert changed == {}  # no running statistics
    head = mutable["network"]["params"]["tail"]["classifier"]
    logits = features @ head["kernel"] + head["bias"]
    np.testing.assert_allclose(predicted["network"], logits, rtol=1e-4, atol=1e-4)
    p = np.exp(logits[:, :3] - logits[:, :3].max(axis=1, keepdims=True))
    p /= p.sum(axis=1, keepdims=True)
    assert value == pytest.approx(-np.log(p[range(4), labels]).mean(), rel=1e-4)
    error = np.pad(p - np.eye(3)[labels], ((0, 0), (0, 2))) / 4
    head_gradient = gradient["network"]["params"]["tail"]["classifier"]
    np.testing.assert_allclose(head_gradient["kernel"], features.T @ error, rtol=1e-3, atol=1e-5)
    assert not method.export(variables) and full_method.export(variables)


@pytest.mark.parametrize(
    ("network", "heads"),
    [("mini_student", {"head"}), ("deit_ti_distilled", {"head", "head_dist"}), ("vgg16", {"fc2"}),
     ("regnety_004", {"classifier"}), ("densenetd40k12", {"classifier"}), ("efficientnet_lite0", {"classifier"}),
     ("resnet20", {"classifier"}), ("clip_vit_b32", {"head"}), ("resnet18", {"classifier"}),
     ("slim_resnet18", {"classifier"})],
)  # fmt: skip
def test_every_family_has_a_head(network, heads):
    config = base.default("supervised", data="glyph_mini", network=network)
    config.supervised.trained = "head"
    config.network.update({"depth": 1} if "depth" in config.network and "vit" in config.network.family else {})
    method = supervised.build(config, StreamInfo(5, (3, 2)))
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    mutable = flatten_dict(split(shapes, lambda path: not method.is_frozen(path))[0])
    assert {path[-2] for path in mutable} == heads
    assert {leaf.shape[-1] for leaf in mutable.values()} == {5}


def test_every_family_is_in_the_list_above():
    (cases,) = [mark.args[1] for mark in test_every_family_has_a_head.pytestmark]
    assert {families.network_options(name)["family"].default for name, _ in cases} == {
        family.OPTIONS["family"].default for family in families.FAMILIES
    }


def test_head_is_identified_by_its_path():
    assert is_head(["params", "tail", "fc2", "bias"]) and is_head(("head", "kernel"))
    assert not is_head(["params", "block_0", "mlp", "fc2", "bias"]) and not is_head(("pos_embed",))


def test_unknown_parts_and_networks_without_a_head_are_refused():
    with pytest.raises(UserError, match="supervised.trained='tail': use 'network' or 'head'"):
        check(supervised.OPTIONS, {"trained": "tail"}, "supervised")
    config = base.default("supervised", data="glyph_mini", network="mini_student")
    config.network.update(family="tests.support.tiny_network", dim=4)
    config.supervised.trained = "head"
    method = supervised.build(config, StreamInfo(5, (3, 2)))
    with pytest.raises(UserError, match="this network has no layer with the name of a head"):
        method.load_pretrained(jax.eval_shape(method.init, jax.random.key(0)))
