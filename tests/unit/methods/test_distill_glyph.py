"""The config that distills a ViT without labels: its loss in NumPy, its inputs."""

import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cdl_jax.errors import UserError
from cdl_jax.losses import Context
from cdl_jax.methods import vkd
from cdl_jax.methods.base import StreamInfo

SIZES = {"depth": 1, "heads": 2, "mlp_ratio": 1.0, "patch_size": 16, "image_size": 32}
get_config = runpy.run_path(str(Path(__file__).parents[3] / "configs" / "distill_glyph.py"))["get_config"]


def build(match):
    """Builds the method for small ViTs and five images of four classes."""
    config = get_config(f"match={match}")
    config.student.update(dim=4, **SIZES)
    config.teacher.update(dim=6, weights="random", **SIZES)
    return vkd.build(config, StreamInfo(4, (4,), train_images=5))


def variables_of(method):
    """Returns normal numbers in every leaf, the teacher's cached outputs included."""
    rng = np.random.default_rng(0)
    shapes = jax.eval_shape(method.init, jax.random.key(0))
    return jax.tree.map(lambda leaf: rng.normal(0, 0.5, leaf.shape).astype(leaf.dtype), shapes)


def batch(labels):
    images = np.random.default_rng(1).random((3, 32, 32, 3), np.float32)
    return {"images": images, "labels": np.array(labels), "rows": np.array([4, 0, 2])}


def loss(method, variables, labels):
    numbers = {"task": 0, "first": 0, "end": 4, "epoch": 0, "step": 0}
    context = Context(**{k: jnp.int32(v) for k, v in numbers.items()}, progress=jnp.float32(0), key=jax.random.key(3))
    return method.loss(variables, batch(labels), context)[0]


def normalized(rows):
    return (rows - rows.mean(axis=1, keepdims=True)) / np.sqrt(rows.var(axis=1, keepdims=True) + 1e-5)


def test_the_loss_is_the_distance_to_cached_features_of_the_images_and_reads_no_label():
    method = build("features")
    variables = variables_of(method)
    found = jax.jit(lambda v: (loss(method, v, (0, 1, 2)), loss(method, v, (3, 3, 3))))(variables)
    _, out = method.student.apply(variables["student"], batch((0, 1, 2))["images"])
    projected = np.asarray(out["class_token"]) @ variables["distill"]["params"]["projector"]["kernel"]
    target = variables["cache"]["class_token"][[4, 0, 2]]
    expected = ((normalized(projected) - normalized(target)) ** 2).mean()
    np.testing.assert_allclose(found, [expected, expected], rtol=1e-4)


@pytest.mark.parametrize(("match", "reads_labels"), [("features", False), ("logits", False), ("labels", True)])
def test_the_student_learns_from_the_teacher_or_from_the_labels(match, reads_labels):
    method = build(match)
    weights = (method.scheme.label_weight, *(method.phases[1].epochs, method.phases[0].sequential))
    assert weights == (float(reads_labels), 1, True)


def test_an_unknown_match_is_refused():
    with pytest.raises(UserError, match=r"^config argument match='feature': use features, logits, both, labels$"):
        get_config("match=feature")
