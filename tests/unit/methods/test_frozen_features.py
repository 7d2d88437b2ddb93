"""Frozen networks as functions from images to vectors: pixels, sizes, heads."""

import jax
import jax.numpy as jnp
import numpy as np

from cdl_jax.losses import Context
from cdl_jax.methods.shared import frozen_features, teachers


class Echo:
    """A network whose features are an image's mean color; `shape` is the input's."""

    def outputs(self, variables, images, context):
        self.shape = images.shape
        return {"features": images.mean(axis=(1, 2)), "class_token": 0 * images[:, 0, 0], "logits": images[:, 0, 0]}


def outputs(pixels, size, images):
    network = Echo()
    found = frozen_features.FrozenFeatures(network, "", size, pixels, "teacher.weights")
    return found.outputs({}, images, Context.dummy()), network.shape


def test_pixels_are_normalized_for_the_network():
    images = jnp.full((2, 4, 4, 3), 0.5)  # 0.75 of white
    mean, std = (np.array(frozen_features.INPUTS["imagenet"][name]) for name in ("mean", "std"))
    for pixels, wanted in (("signed", 0.5), ("unit", 0.75), ("imagenet", (0.75 - mean) / std)):
        found, _ = outputs(pixels, 4, images)
        np.testing.assert_allclose(found["features"], np.broadcast_to(wanted, (2, 3)), rtol=1e-5)


def test_images_are_enlarged_by_repeated_pixels_where_the_size_is_a_multiple():
    images = jnp.arange(2 * 2 * 2 * 3, dtype=jnp.float32).reshape(2, 2, 2, 3) / 24
    np.testing.assert_array_equal(frozen_features._resize(images, 4)[:, ::2, 1::2], images)
    assert outputs("signed", 6, images)[1] == (2, 6, 6, 3) and outputs("signed", 0, images)[1] == (2, 2, 2, 3)


def test_a_head_that_the_file_lacks_becomes_zero(monkeypatch):
    shape = jax.ShapeDtypeStruct((2, 3), np.float32)
    variables = {"params": {"body": {"kernel": shape}, "head": {"kernel": shape}}}
    loaded = {"params": {"body": {"kernel": np.ones((2, 3), np.float32)}, "head": {"kernel": shape}}}
    monkeypatch.setattr(frozen_features.weights, "load_network", lambda *args, **kwargs: loaded)
    module = teachers.ModuleTeacher(None, None, 4, "file.npz")
    found = frozen_features.FrozenFeatures(module, "", 4, "unit", "teacher.weights").load_pretrained(variables)
    assert found["params"]["body"]["kernel"].sum() == 6 and found["params"]["head"]["kernel"].sum() == 0
