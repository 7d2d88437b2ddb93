"""Parameters of a tiny ViT, for the tests of weight files."""

import jax
import numpy as np
from flax.traverse_util import flatten_dict

from cdl_jax.models.vit import ViT

DIM, DEPTH, HEADS, PATCH, GRID, CLASSES = 12, 2, 3, 4, 2, 5


def param_shapes(**changes):
    """Returns the shapes of the parameters of a tiny ViT."""
    sizes = {"dim": DIM, "depth": DEPTH, "heads": HEADS, "patch_size": PATCH, "image_size": GRID * PATCH}
    model = ViT(**{**sizes, "num_classes": CLASSES, **changes})
    images = jax.ShapeDtypeStruct((1, model.image_size, model.image_size, 3), np.float32)
    return jax.eval_shape(model.init, jax.random.key(0), images)["params"]


def random_params(seed=0, **changes):
    """Returns random parameters of a tiny ViT, float32 from N(0, 1)."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda leaf: rng.standard_normal(leaf.shape, dtype=np.float32), param_shapes(**changes))


def assert_same(params, expected):
    """Asserts that nested dicts of float32 arrays are equal bit by bit."""
    params, expected = flatten_dict(params, sep="/"), flatten_dict(expected, sep="/")
    assert params.keys() == expected.keys()
    for name, array in expected.items():
        assert params[name].dtype == np.float32
        np.testing.assert_array_equal(params[name], array, err_msg=name)
