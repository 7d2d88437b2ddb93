"""The VkD scheme: what it compares, what it reads of which teacher, and a projector without weight decay."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from cdl_jax import optim
from cdl_jax.distill import vkd
from cdl_jax.distill.base import NetworkSpec
from cdl_jax.errors import UserError
from cdl_jax.losses import Context
from cdl_jax.models.modules import orthogonal

RNG = np.random.default_rng(0)
STUDENT = NetworkSpec(6, 2, 5, 4, 2, None, None)
CNN = NetworkSpec(0, 0, 0, 4, 2, None, None, {"logits": (2, 4), "features": (2, 9), "shared": (2, 3, 3, 7)})


def options(**changes):
    return ConfigDict({**vkd.OPTIONS, **changes})


def context():
    numbers = {"task": 0, "first": 0, "end": 2, "epoch": 0, "step": 0}
    return Context(**{k: jnp.int32(v) for k, v in numbers.items()}, progress=jnp.float32(0), key=jax.random.key(3))


def outputs(**shapes):
    return {name: jnp.float32(RNG.normal(size=shape)) for name, shape in shapes.items()}


def test_the_loss_is_the_papers():
    scheme = vkd.build(options(feature_weight=2.0, logit_weight=0.5, temperature=2.0, label_weight=0.25), CNN, STUDENT)
    variables = jax.jit(scheme.init)(jax.random.key(0))
    student, teacher = outputs(tokens=(3, 5, 6), logits=(3, 4)), outputs(features=(3, 9), logits=(3, 4))
    total, terms = jax.jit(scheme.loss)(variables, student, teacher, None, context())
    weight = np.asarray(variables["state"]["projector"]["base"])[:, :6]
    projected = np.asarray(student["tokens"])[:, 1:].mean(1) @ weight.T
    wanted = np.asarray(teacher["features"])
    wanted = (wanted - wanted.mean(1, keepdims=True)) / np.sqrt(wanted.var(1, keepdims=True) + 1e-5)
    apart = np.abs(projected - wanted)
    feature = 2 * np.where(apart < 1, apart**2 / 2, apart - 0.5).mean()
    p, q = (np.exp(np.asarray(x["logits"])[:, :2] / 2) for x in (teacher, student))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    kd = 0.5 * 4 * (p * np.log(p / q)).sum() / 3
    assert terms["feature"] == pytest.approx(feature, rel=1e-5)
    assert terms["kd"] == pytest.approx(kd, rel=1e-5)
    assert total == pytest.approx(feature + kd, rel=1e-5)
    assert (scheme.label_weight, scheme.needs) == (0.25, ("logits", "features"))


@pytest.mark.parametrize(
    ("teacher", "asked", "needed", "width"),
    [
        (CNN, "", "features", 9),
        (CNN, "shared", "shared", 7),
        (STUDENT, "", "tokens", 6),
        (STUDENT, "class_token", "class_token", 6),
        (STUDENT, "block_1/tokens", "block_1/tokens", 6),
    ],
)
def test_a_teachers_feature_is_found_by_name(teacher, asked, needed, width):
    scheme = vkd.build(options(teacher_feature=asked, projector="householder"), teacher, STUDENT)
    shapes = jax.eval_shape(scheme.init, jax.random.key(0))
    assert scheme.needs == ("logits", needed)
    assert shapes["params"]["projector"]["raw"].shape == (width, 6)


def test_a_map_is_averaged_over_the_picture():
    out = outputs(shared=(2, 3, 3, 7), tokens=(2, 4, 7), patch_tokens=(2, 3, 7))
    assert np.allclose(vkd.feature_vector(out, "shared"), out["shared"].mean((1, 2)), atol=1e-6)
    assert np.allclose(vkd.feature_vector(out, "patch_mean"), out["patch_tokens"].mean(1), atol=1e-6)
    assert np.allclose(
        vkd.feature_vector({"tokens": out["tokens"]}, "patch_mean"), out["tokens"][:, 1:].mean(1), atol=1e-6
    )


def test_a_teacher_that_tells_no_feature_is_refused():
    with pytest.raises(UserError, match="'stage9' is no output of the teacher: its outputs are features, logits"):
        vkd.build(options(teacher_feature="stage9"), CNN, STUDENT)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weight_decay_spares_the_projector_but_not_the_references(name):
    chosen = ConfigDict({**optim.OPTIONS, "name": name, "weight_decay": 0.1, "momentum": 0.0})
    transform = optim.build(chosen, 1).transform
    for exact, decayed in ((False, False), (True, True)):
        scheme = vkd.build(options(reference_exact=exact), CNN, STUDENT)
        trained = {"distill": {"params": jax.jit(scheme.init)(jax.random.key(0))["params"]}, "head": jnp.ones((2, 2))}
        still = jax.tree.map(jnp.zeros_like, trained)
        step, _ = transform.update(still, transform.init(trained), trained)
        assert bool(jax.tree.leaves(step["distill"])[0].any()) == decayed
        assert np.allclose(step["head"], 0.1)


def test_a_linear_projector_is_there_to_compare_with():
    scheme = vkd.build(options(projector="linear"), CNN, STUDENT)
    variables = jax.jit(scheme.init)(jax.random.key(0))
    assert variables["params"]["projector"]["kernel"].shape == (6, 9)
    assert orthogonal.orthogonality_error(variables["params"]["projector"]["kernel"]) > 0.1
