"""The VkD scheme: loss, features of each kind of teacher, projector weight decay."""

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
from cdl_jax.options import defaults

RNG = np.random.default_rng(0)
STUDENT = NetworkSpec(6, 2, 5, 4, 2, None, None)
CNN = NetworkSpec(0, 0, 0, 4, 2, None, None, {"logits": (2, 4), "features": (2, 9), "shared": (2, 3, 3, 7)})


def options(**changes):
    return ConfigDict(defaults(vkd.OPTIONS, **changes))


def context():
    numbers = {"task": 0, "first": 0, "end": 2, "epoch": 0, "step": 0}
    return Context(**{k: jnp.int32(v) for k, v in numbers.items()}, progress=jnp.float32(0), key=jax.random.key(3))


def outputs(**shapes):
    return {name: jnp.float32(RNG.normal(size=shape)) for name, shape in shapes.items()}


def test_loss_is_that_of_the_paper():
    scheme = vkd.build(options(feature_weight=2.0, logit_weight=0.5, temperature=2.0, label_weight=0.25), CNN, STUDENT)
    variables = jax.jit(scheme.init)(jax.random.key(0))
    student, teacher = outputs(tokens=(3, 5, 6), logits=(3, 4)), outputs(features=(3, 9), logits=(3, 4))
    total, terms = jax.jit(scheme.loss)(variables, student, teacher, None, context())
    weight = np.asarray(variables["state"]["projector"]["base"])[:, :6]
    projected = np.asarray(student["tokens"])[:, 1:].mean(1) @ weight.T
    target = np.asarray(teacher["features"])
    target = (target - target.mean(1, keepdims=True)) / np.sqrt(target.var(1, keepdims=True) + 1e-5)
    difference = np.abs(projected - target)
    feature = 2 * np.where(difference < 1, difference**2 / 2, difference - 0.5).mean()
    p, q = (np.exp(np.asarray(x["logits"])[:, :2] / 2) for x in (teacher, student))
    p, q = p / p.sum(1, keepdims=True), q / q.sum(1, keepdims=True)
    kd = 0.5 * 4 * (p * np.log(p / q)).sum() / 3
    assert terms["feature"] == pytest.approx(feature, rel=1e-5)
    assert terms["kd"] == pytest.approx(kd, rel=1e-5)
    assert total == pytest.approx(feature + kd, rel=1e-5)
    assert (scheme.label_weight, scheme.needs) == (0.25, ("logits", "features"))


@pytest.mark.parametrize(
    ("teacher", "feature", "output", "width"),
    [
        (CNN, "", "features", 9),
        (CNN, "shared", "shared", 7),
        (STUDENT, "", "tokens", 6),
        (STUDENT, "class_token", "class_token", 6),
        (STUDENT, "block_1/tokens", "block_1/tokens", 6),
        (STUDENT, "logits", "logits", 4),
    ],
)
def test_teacher_feature_is_selected_by_name(teacher, feature, output, width):
    scheme = vkd.build(options(teacher_feature=feature, projector="householder"), teacher, STUDENT)
    shapes = jax.eval_shape(scheme.init, jax.random.key(0))
    assert scheme.needs == ("logits", output)
    assert shapes["params"]["projector"]["raw"].shape == (width, 6)


def test_student_feature_has_the_width_of_its_output():
    scheme = vkd.build(options(student_feature="logits", projector="householder"), CNN, STUDENT)
    shapes = jax.eval_shape(scheme.init, jax.random.key(0))
    assert shapes["params"]["projector"]["raw"].shape == (9, 4)
    student, teacher = outputs(tokens=(3, 5, 6), logits=(3, 4)), outputs(features=(3, 9), logits=(3, 4))
    assert np.isfinite(scheme.loss(scheme.init(jax.random.key(0)), student, teacher, None, context())[0])


@pytest.mark.parametrize("feature", ["attention_0", "prompts", "block_2/tokens", "features"])
@pytest.mark.parametrize("role", ["teacher", "student"])
def test_outputs_of_a_vit_without_a_known_width_are_refused(role, feature):
    with pytest.raises(UserError, match=f"^distill.{role}_feature='{feature}' is no output of the {role}: its outputs"):
        vkd.build(options(**{f"{role}_feature": feature}), STUDENT, STUDENT)


def test_features_are_averaged_over_positions_and_patches():
    out = outputs(shared=(2, 3, 3, 7), tokens=(2, 4, 7), patch_tokens=(2, 3, 7))
    assert np.allclose(vkd.feature_vector(out, "shared"), out["shared"].mean((1, 2)), atol=1e-6)
    assert np.allclose(vkd.feature_vector(out, "patch_mean"), out["patch_tokens"].mean(1), atol=1e-6)
    assert np.allclose(
        vkd.feature_vector({"tokens": out["tokens"]}, "patch_mean"), out["tokens"][:, 1:].mean(1), atol=1e-6
    )


def test_teacher_without_the_feature_is_refused():
    with pytest.raises(UserError, match="'stage9' is no output of the teacher: its outputs are features, logits"):
        vkd.build(options(teacher_feature="stage9"), CNN, STUDENT)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_weight_decay_skips_the_projector_except_in_the_reference_variant(name):
    optimizer_options = ConfigDict(defaults(optim.OPTIONS, name=name, weight_decay=0.1, momentum=0.0))
    transform = optim.build(optimizer_options, 1).transform
    for exact, decayed in ((False, False), (True, True)):
        scheme = vkd.build(options(reference_exact=exact), CNN, STUDENT)
        trained = {"distill": {"params": jax.jit(scheme.init)(jax.random.key(0))["params"]}, "head": jnp.ones((2, 2))}
        zero_gradients = jax.tree.map(jnp.zeros_like, trained)
        step, _ = transform.update(zero_gradients, transform.init(trained), trained)
        assert bool(jax.tree.leaves(step["distill"])[0].any()) == decayed
        assert np.allclose(step["head"], 0.1)


def test_linear_projector_is_unconstrained():
    scheme = vkd.build(options(projector="linear"), CNN, STUDENT)
    variables = jax.jit(scheme.init)(jax.random.key(0))
    assert variables["params"]["projector"]["kernel"].shape == (6, 9)
    assert orthogonal.orthogonality_error(variables["params"]["projector"]["kernel"]) > 0.1
