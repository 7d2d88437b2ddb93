"""The method vkd: trained parameters, teachers of all families, refused teachers."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict

from cdl_jax import config as configs
from cdl_jax.errors import UserError
from cdl_jax.losses import Context
from cdl_jax.methods import vkd
from cdl_jax.methods.base import StreamInfo
from cdl_jax.models import regnet

ENDS = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
TEACHERS = {
    "resnet20": {"depths": (1, 1, 1), "widths": (4, 6, 10)},
    "regnety_160": {"depth": 2, "w0": 8, "wa": 8.0, "wm": 2.0, "group_width": 8, "image_size": 32},
    "mini_teacher": {"dim": 12, "depth": 1, "heads": 2, "patch_size": 16},
}


def build(teacher="resnet20", **changes):
    config = configs.default("vkd", data="glyph_mini", network="deit_ti_conv", teacher=teacher)
    config.student.update(dim=8, heads=2, depth=1, image_size=32, stem_width=4)
    config.teacher.update(TEACHERS[teacher])
    config.teacher.weights = "random"
    config.update_from_flattened_dict(changes)
    configs.check(config)
    return vkd.build(config, StreamInfo(4, (2, 2)))


def test_glyph_config_sets_both_networks_and_the_scheme():
    get_config = runpy.run_path(str(Path(__file__).parents[3] / "configs" / "vkd_glyph.py"))["get_config"]
    config = get_config("feature=0.5,logit=0,projector=cayley,norm=batch,seed=2")
    teacher = get_config("part=teacher").network
    config.teacher.weights = "random"
    method = vkd.build(config, StreamInfo(20, (20,)))
    assert (config.seed, method.phases[0].epochs, method.image_size) == (2, 6, 32)
    assert {key: config.teacher[key] for key in teacher if key != "weights"} == {
        key: teacher[key] for key in teacher if key != "weights"
    }
    shapes = jax.eval_shape(method.scheme.init, jax.random.key(0))
    assert shapes["params"]["projector"]["raw"].shape == (128, 48)
    assert (config.distill.feature_weight, config.distill.logit_weight) == (0.5, 0.0)
    assert (config.distill.projector, config.distill.teacher_norm) == ("cayley", "batch")
    with pytest.raises(UserError, match="use teacher or student"):
        get_config("part=pupil")


def step_context():
    numbers = {"task": 0, "first": 0, "end": 2, "epoch": 0, "step": 0}
    return Context(**{k: jnp.int32(v) for k, v in numbers.items()}, progress=jnp.float32(0), key=jax.random.key(3))


def compiled(function, *arguments):
    """Compiles without optimization, which is faster here, and calls `function`."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function).lower(*arguments).compile(options)(*arguments)


def batch():
    rng = np.random.default_rng(0)
    return {"images": rng.random((4, 32, 32, 3), np.float32), "labels": np.array([0, 1, 1, 0])}


def random_variables(method):
    """Draws normal numbers for every leaf; scales and variances are one.

    Compiling `init` takes seconds.
    """
    rng = np.random.default_rng(1)
    shapes = flatten_dict(jax.eval_shape(method.init, jax.random.key(0)))
    values = {path: rng.normal(0, 0.3, leaf.shape).astype(leaf.dtype) for path, leaf in shapes.items()}
    return unflatten_dict({p: np.ones_like(v) if p[-1] in ("scale", "var") else v for p, v in values.items()})


def loss_and_gradients(method):
    """Returns a function of the variables: ((loss, Outcome), gradients)."""
    return jax.value_and_grad(lambda variables: method.loss(variables, batch(), step_context()), has_aux=True)


@pytest.mark.parametrize(("teacher", "width"), [("resnet20", 10), ("regnety_160", 16), ("mini_teacher", 12)])
def test_the_projector_fits_any_teacher(teacher, width):
    method = build(teacher)
    (_, outcome), gradients = jax.eval_shape(loss_and_gradients(method), random_variables(method))
    assert {"cross_entropy", "feature", "kd"} <= set(outcome.metrics)
    assert {path[:2] for path in flatten_dict(outcome.variables)} == {("student", "batch_stats")}
    assert gradients["distill"]["params"]["projector"]["raw"].shape == (width, 8)


def test_the_student_and_the_projector_have_gradients_and_the_teacher_has_none():
    method = build()
    (value, outcome), gradients = jax.device_get(compiled(loss_and_gradients(method), random_variables(method)))
    assert np.isfinite(value)
    assert value == pytest.approx(sum(float(outcome.metrics[k]) for k in ("cross_entropy", "feature", "kd")), rel=1e-5)
    (update,) = method.phases[0].updates
    trained = {p[0] for p, g in flatten_dict(gradients).items() if update.trainable(p) and np.any(g)}
    assert trained == {"student", "distill"}
    assert not any(np.any(g) for p, g in flatten_dict(gradients).items() if method.is_frozen(p))


def test_distillation_weights_of_zero_leave_the_label_loss():
    method = build(**{"distill.feature_weight": 0.0, "distill.logit_weight": 0.0})
    variables = random_variables(method)
    value, outcome = compiled(method.loss, variables, batch(), step_context())
    assert value == pytest.approx(float(outcome.metrics["cross_entropy"]), rel=1e-6)


def test_binary_label_loss_is_the_mean_over_classes_of_the_task():
    logits, targets = np.array([[2.0, -1.0, 9.0]]), np.array([[0.6, 0.0, 0.0]])
    loss = vkd._label_loss("binary", jnp.asarray(logits), jnp.asarray(targets), jnp.array([True, True, False]))
    assert loss == pytest.approx((np.log1p(np.exp(-2.0)) + np.log1p(np.exp(-1.0))) / 2, rel=1e-5)


def test_predict_has_both_networks_and_export_the_student():
    method = build()
    variables = random_variables(method)
    logits, counts = compiled(method.predict, variables, batch()["images"], step_context())
    assert {name: z.shape for name, z in logits.items()} == {"teacher": (4, 4), "student": (4, 4)}
    assert counts == {}
    assert method.export(variables)["weights"] is variables["student"]


def test_teacher_with_other_classes_is_refused(tmp_path):
    shapes = jax.eval_shape(build("regnety_160").init, jax.random.key(0))["teacher"]
    values = jax.tree.map(lambda leaf: np.zeros(leaf.shape, np.float32), shapes)
    state = {}
    for path, array in flatten_dict(values).items():
        name = f"{regnet.torch_name('/'.join(path[1:-1]))}.{ENDS.get(path[-1], path[-1])}"
        state[name] = array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T
    state["head.fc.weight"], state["head.fc.bias"] = np.zeros((9, 16)), np.zeros(9)
    np.savez(tmp_path / "state.npz", **state)
    method = build("regnety_160", **{"teacher.weights": str(tmp_path / "state.npz"), "student.weights": "random"})
    with pytest.raises(UserError, match="has other classes than this stream's 4"):
        method.load_pretrained(jax.eval_shape(method.init, jax.random.key(0)))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"vkd.label_loss": "x"}, "use 'cross_entropy' or 'binary'"),
        ({"mixing.mixup": -1.0}, "mixing.mixup=-1.0"),
        ({"distill.student_feature": "x"}, "'x' is no output of the student"),
        ({"distill.teacher_feature": "layer9"}, "'layer9' is no output of the teacher"),
        ({"student.image_size": 64}, "teacher.image_size=32 differs"),
        ({"teacher.weights": "absent.pth"}, "no such file or folder"),
    ],
)
def test_options_that_do_not_fit_are_refused_in_one_line(changes, message):
    with pytest.raises(UserError, match="^[^\n]*$") as error:
        build(**changes)
    assert message in str(error.value)
