"""A tiny ViT's parameters, for the tests of what reads weight files."""

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from cdl_jax.models.vit import ViT

DIM, DEPTH, HEADS, PATCH, GRID, CLASSES = 12, 2, 3, 4, 2, 5


def wanted(**changes):
    """Shapes of a tiny model's parameters."""
    sizes = {"dim": DIM, "depth": DEPTH, "heads": HEADS, "patch_size": PATCH, "image_size": GRID * PATCH}
    model = ViT(**{**sizes, "num_classes": CLASSES, **changes})
    images = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def random_params(seed=0, **changes):
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, dtype=np.float32), wanted(**changes))


def assert_same(found, expected):
    found, expected = flatten_dict(found, sep="/"), flatten_dict(expected, sep="/")
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array, err_msg=name)
