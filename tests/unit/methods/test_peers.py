"""Peer methods: changed parameters, networks' names and metrics, invalid options."""

import runpy
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from cdl_jax import config as configs
from cdl_jax import plugins
from cdl_jax.errors import UserError
from cdl_jax.methods.base import StreamInfo, join, split
from cdl_jax.models import weights
from tests.support.contexts import context

INFO = StreamInfo(4, (2, 2))
RNG = np.random.default_rng(11)
BATCH = {"images": RNG.normal(size=(6, 8, 8, 3)).astype(np.float32), "labels": np.array([0, 1, 1, 0, 1, 0])}
# Compiles in a fraction of the time; these tests do not depend on speed.
quick = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0, "xla_disable_hlo_passes": "fusion"})
DENSE = {"growth": 2, "blocks": (1, 1, 1), "init_features": 2, "image_size": 8}
SMALL = {"depths": (0, 0, 1), "widths": (2, 4, 8), "image_size": 8}  # a convolution and a block
TINY = {"family": "tests.support.tiny_backbone", "widths": (4, 6), "image_size": 8}


def build(method, *, network="", teacher="", changes=(), **choices):
    """Builds (method, config) of small networks.

    Args:
        network: name of the network whose family is used. Default: "", networks without convolutions.
        teacher: the same for the teacher.
        changes: options of the method's own section.
    """
    names = {"teacher": teacher or "resnet20"} if method == "kd" else {}
    config = configs.default(method, data="glyph_mini", network=network or "resnet20", **names, **choices)
    for name in ("network", "student", "teacher"):
        if name in config:
            convolutional = SMALL if config[name].family != "densenet" else DENSE
            config[name].update(convolutional if (teacher if name == "teacher" else network) else TINY)
    config[method].update(dict(changes))
    configs.check(config)
    if "num_branches" in config[method] and "num_branches" not in dict(changes):
        config[method].num_branches = 3 if method == "okddip" else 2
    config.optim.update(name="sgd", nesterov=True, learning_rate=0.1, schedule="constant")
    return plugins.load_plugin("methods", method).build(config, INFO), config


def step(method, variables):
    """(variables after a step, Outcome) of the method's only update."""
    update = method.phases[0].updates[0]

    def run(variables):
        trained, rest = split(variables, update.trainable)

        def loss(trained):
            return update.loss(join(rest, trained), BATCH, context(0, 2))

        gradients, outcome = jax.grad(loss, has_aux=True)(trained)
        direction, _ = update.optimizer.transform.update(gradients, update.optimizer.transform.init(trained), trained)
        trained = jax.tree.map(lambda p, d: p - 0.1 * d, trained, direction)
        return join(rest, trained, outcome.variables), outcome

    return quick(run)(variables)


def random_variables(method):
    """Draws variables of the method's shapes: its own `init` takes seconds to compile."""
    shapes, rng = flatten_dict(jax.eval_shape(method.init, jax.random.key(0))), np.random.default_rng(5)
    drawn = {path: rng.normal(0, 0.5, leaf.shape).astype(np.float32) for path, leaf in shapes.items()}
    ones = {path: np.ones_like(drawn[path]) for path in drawn if path[-1] in ("scale", "var")}
    return unflatten_dict({**drawn, **ones})


def changed(before, after):
    """Paths of the leaves that differ."""
    old, new = flatten_dict(before), flatten_dict(after)
    assert old.keys() == new.keys()
    return {path for path in old if not np.array_equal(old[path], new[path])}


@pytest.mark.parametrize(
    ("method", "choices", "parts"),
    [
        ("okddip", {}, {"stem", "peer_0", "peer_1", "leader", "attention"}),
        ("okddip", {"base": "network"}, {"peer_0", "peer_1", "leader", "attention"}),
        ("dml", {}, {"peer_0", "peer_1"}),
        ("one", {}, {"stem", "peer_0", "peer_1", "gate"}),
        ("cl_ilr", {}, {"stem", "peer_0", "peer_1"}),
        ("individual", {}, {"stem", "peer_0", "peer_1"}),
        ("supervised", {}, {"network"}),
        ("kd", {}, {"student"}),
    ],
)
def test_a_step_changes_all_trained_parameters_and_the_running_statistics(method, choices, parts):
    built, _ = build(method, **choices)
    before = random_variables(built)
    after, outcome = step(built, before)
    frozen = {path for path in flatten_dict(before) if built.is_frozen(path)}
    moved, everything = changed(before, after), set(flatten_dict(before))
    # The gate's batch norm removes its linear bias, up to rounding.
    assert everything - frozen - moved <= {("gate", "params", "linear", "bias")}
    assert not moved & frozen and {path[0] for path in moved} == parts
    assert all(np.isfinite(value) for value in outcome.metrics.values())
    logits, _ = quick(built.predict)(after, BATCH["images"], context(0, 2))
    assert tuple(sorted(logits)) == tuple(sorted(built.networks))


def test_with_detached_targets_the_attention_is_not_trained():
    built, _ = build("okddip", base="network", changes={"detach_targets": True})
    before = random_variables(built)
    after, _ = step(built, before)
    assert {path[0] for path in changed(before, after)} == {"peer_0", "peer_1", "leader"}


def test_rescaling_divides_only_the_gradient_of_the_stem():
    gradients = {}
    for scaled in (True, False):
        built, _ = build("cl_ilr", changes={"bpscale": scaled})
        variables = random_variables(built)
        gradient = quick(jax.grad(lambda p, v, b=built: b.loss(join(v, p), BATCH, context(0, 2))[0]))
        params, _ = split(variables, lambda path: path[1] == "params")
        gradients[scaled] = flatten_dict(gradient(params, variables))
    for path, gradient in gradients[False].items():
        expected = gradient / 2 if path[0] == "stem" else gradient
        np.testing.assert_allclose(gradients[True][path], expected, rtol=1e-4, atol=1e-6, err_msg=str(path))


def test_predictions_and_metrics_of_leader_and_ensemble():
    built, _ = build("okddip", base="network")
    variables = random_variables(built)
    step_context = context(0, 4, task=1)
    logits, _ = quick(built.predict)(variables, BATCH["images"], step_context)
    np.testing.assert_allclose(logits["ensemble"], (logits["peer_0"] + logits["peer_1"]) / 2, rtol=1e-5)
    leader_logits, _ = quick(built.peers.backbone.apply)(variables["leader"], BATCH["images"])
    np.testing.assert_allclose(logits["leader"], leader_logits, rtol=1e-4, atol=1e-5)
    fixed = {"peer_0": np.eye(4)[[0, 1, 0, 0]], "peer_1": np.eye(4)[[0, 2, 2, 3]]}
    fixed |= {"leader": fixed["peer_0"], "ensemble": fixed["peer_0"] + fixed["peer_1"]}
    metrics = quick(built.extra_metrics)(fixed, np.array([0, 1, 2, 3]), step_context)
    assert metrics["mean/accuracy"].tolist() == [100, 50, 50, 50]
    assert metrics["diversity"][0] < 1e-5 < metrics["diversity"][1] and "diversity_all" not in metrics


def test_without_a_leader_the_ensemble_is_the_headline():
    built, _ = build("okddip", base="network", changes={"en": True})
    assert built.networks == ("peer_0", "peer_1", "peer_2", "ensemble") and built.headline == ("ensemble",)
    logits, _ = quick(built.predict)(random_variables(built), BATCH["images"], context(0, 2))
    np.testing.assert_allclose(logits["ensemble"], sum(logits[f"peer_{i}"] for i in range(3)) / 3, rtol=1e-5)
    assert built.diversity_groups == {
        "diversity": ("peer_0", "peer_1"),
        "diversity_all": ("peer_0", "peer_1", "peer_2"),
    }


@pytest.mark.parametrize(
    ("select_by", "headline"),
    [("leader", ("leader",)), ("mean", ("peer_0", "peer_1")), ("ensemble", ("ensemble",))],
)
def test_select_by_sets_the_headline(select_by, headline):
    assert build("okddip", changes={"select_by": select_by})[0].headline == headline


def test_a_shared_last_block_updates_its_statistics_once_per_branch():
    shared, _ = build("okddip", network="densenetd40k12", reference=True)
    separate, config = build("okddip", network="densenetd40k12")
    assert shared.peers.block.updates == 4 and separate.peers.block is None
    assert shared.options.diversity_divisor == "reference" and config.okddip.densenet_shared_block == "own"
    before = random_variables(shared)
    assert "block" in before and "block" not in random_variables(separate)
    after, _ = step(shared, before)
    old = before["block"]["batch_stats"]["norm1_0"]["mean"]
    stem = quick(lambda v: shared.peers.stem.apply(v, BATCH["images"], train=True, mutable=["batch_stats"])[0][0])
    pooled = np.asarray(stem(before["stem"]))
    mean = after["block"]["batch_stats"]["norm1_0"]["mean"]
    np.testing.assert_allclose(mean, 0.9**4 * old + (1 - 0.9**4) * pooled.mean((0, 1, 2)), rtol=1e-3, atol=1e-5)


def test_reference_sets_the_options_of_the_network():
    assert configs.default("one", data="glyph_mini", network="vgg16", reference=True).one.vgg_double_pass
    vgg = configs.default("okddip", data="glyph_mini", network="vgg16", reference=True)
    assert vgg.network.torch_head_bias and vgg.network.dropout == 0.5
    assert configs.default("dml", data="glyph_mini", network="vgg16").network.dropout == 0
    assert configs.default("okddip", data="glyph_mini", network="vgg16", base="network").network.dropout == 0


@pytest.mark.parametrize(
    ("method", "changes", "message"),
    [
        ("okddip", {"num_branches": 1}, "okddip.num_branches=1"),
        ("dml", {"num_branches": 0}, "dml.num_branches=0"),
        ("okddip", {"base": "both"}, "okddip.base='both'"),
        ("okddip", {"aggregate": "prob"}, "okddip.aggregate='prob': use 'logits' or 'probs'"),
        ("okddip", {"select_by": "teacher"}, "okddip.select_by='teacher'"),
        ("dml", {"select_by": "leader"}, "dml.select_by='leader'"),
        ("okddip", {"densenet_shared_block": "reference"}, "is about DenseNet"),
        ("one", {"densenet_shared_block": "shared"}, "one.densenet_shared_block='shared': use 'own' or 'reference'"),
        ("one", {"vgg_double_pass": True}, "is about VGG"),
        ("cl_ilr", {"diversity_divisor": "three"}, "cl_ilr.diversity_divisor='three'"),
        ("kd", {"teacher_checkpoint": "best"}, "kd.teacher_checkpoint='best'"),
    ],
)
def test_invalid_options_are_refused_in_one_line(method, changes, message):
    with pytest.raises(UserError, match=message) as error:
        build(method, changes=changes)
    assert "\n" not in str(error.value)


def test_a_vit_is_refused():
    with pytest.raises(UserError, match="no network of the name 'vit_s16'"):
        build("dml", network="vit_s16")


def test_a_missing_or_different_teacher_is_refused(tmp_path):
    built, config = build("kd", teacher="resnet20")
    with pytest.raises(UserError, match="config.teacher.weights is empty"):
        built.load_pretrained(jax.eval_shape(built.init, jax.random.key(0)))
    config.teacher.weights = str(tmp_path / "nothing.npz")
    with pytest.raises(UserError, match="no such file or folder"):
        plugins.load_plugin("methods", "kd").build(config, INFO)
    config.teacher.weights = str(tmp_path)
    with pytest.raises(UserError, match="has none of model.safetensors"):
        plugins.load_plugin("methods", "kd").build(config, INFO)

    file = tmp_path / "weights.npz"
    weights.save(file, random_variables(built)["teacher"])
    config.teacher.weights = str(file)
    loaded = plugins.load_plugin("methods", "kd").build(config, INFO)
    again = loaded.load_pretrained(jax.eval_shape(loaded.init, jax.random.key(0)))["teacher"]
    assert not changed(random_variables(built)["teacher"], again)
    config.teacher.update(widths=(2, 4, 6))
    other = plugins.load_plugin("methods", "kd").build(config, INFO)
    with pytest.raises(UserError, match="of another architecture") as error:
        other.load_pretrained(jax.eval_shape(other.init, jax.random.key(0)))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("data", ["cifar10", "cifar100", "imagenet"])
@pytest.mark.parametrize("method", ["okddip", "dml", "one", "cl_ilr", "individual", "kd", "supervised"])
def test_every_method_has_a_config_for_every_data_set(method, data):
    networks = {
        "cifar10": ("resnet32", "resnet110", "wide_resnet20_8", "vgg16", "densenetd40k12"),
        "cifar100": ("resnet20", "vgg19", "densenetd100k12"),
        "imagenet": ("resnet18", "resnet50"),
    }[data]
    get_config = runpy.run_path(str(Path(__file__).parents[3] / "configs" / "okddip.py"))["get_config"]
    for network in networks:
        teacher = ",teacher=resnet34" if method == "kd" and data == "imagenet" else ""
        config = get_config(f"method={method},network={network},data={data},epochs=60{teacher}")
        built = plugins.load_plugin("methods", method).build(config, INFO)
        assert built.phases[0].epochs == 60 and built.image_size == (224 if data == "imagenet" else 32)
        rates = [float(built.phases[0].updates[0].optimizer.learning_rate(jnp.float32(e))) for e in (0, 29, 59)]
        assert rates == pytest.approx([0.1, 0.01 if data == "imagenet" else 0.1, 0.001], rel=1e-5)
        if method in ("okddip", "one", "cl_ilr"):
            assert config[method].length == 16


def test_nesterov_momentum_equals_torch():
    """`g' = g + wd p; v = 0.9 v + g'; p <- p - lr (g' + 0.9 v)`, decay on every leaf."""
    built, config = build("supervised", changes={})
    config.optim.update(weight_decay=5e-4)
    transform = plugins.load_plugin("methods", "supervised").build(config, INFO).optimizer.transform
    p, v, ours = 2.0, 0.0, {"bias": jnp.float32(2.0)}
    state = transform.init(ours)
    for gradient in (0.5, -1.0, 0.25):
        direction, state = transform.update({"bias": jnp.float32(gradient)}, state, ours)
        ours = {"bias": ours["bias"] - 0.1 * direction["bias"]}
        with_decay = gradient + 5e-4 * p
        v = 0.9 * v + with_decay
        p -= 0.1 * (with_decay + 0.9 * v)
        assert float(ours["bias"]) == pytest.approx(p, rel=1e-6)
