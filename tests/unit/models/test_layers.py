"""Layers return existing parameters without a trace of their initializers."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.errors import ScopeParamShapeError

from cdl_jax.models.modules import layers

IMAGES = np.random.default_rng(0).standard_normal((2, 5, 5, 3)).astype(np.float32)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (layers.Dense(4), nn.Dense(4)),
        (layers.Conv(4, (3, 3)), nn.Conv(4, (3, 3))),
        (layers.LayerNorm(), nn.LayerNorm()),
    ],
    ids=["Dense", "Conv", "LayerNorm"],
)
def test_parameters_and_outputs_are_those_of_flax(ours, theirs):
    key = jax.random.key(3)
    variables = theirs.init(key, IMAGES)
    jax.tree.map(np.testing.assert_array_equal, ours.init(key, IMAGES), variables)
    np.testing.assert_array_equal(ours.apply(variables, IMAGES), theirs.apply(variables, IMAGES))


def test_an_initializer_runs_only_where_its_parameter_is_created():
    shapes = []

    def initial(key, shape, dtype=jnp.float32):
        shapes.append(shape)
        return jnp.ones(shape, dtype)

    layer = layers.Dense(4, kernel_init=initial)
    variables = layer.init(jax.random.key(0), IMAGES)
    layer.apply(variables, IMAGES)
    assert shapes == [(3, 4)]


class Inner(layers.ReadsParams, nn.Module):
    """A module of parameters and layers, in which auto-named layers have flax's names."""

    @nn.compact
    def __call__(self, x):
        return layers.Dense(2)(x * self.param("scale", nn.initializers.constant(3.0), (x.shape[-1],)))


def test_names_of_parameters_are_those_of_flax():
    shapes = jax.eval_shape(Inner().init, jax.random.key(0), IMAGES)["params"]
    assert sorted(shapes) == ["Dense_0", "scale"] and shapes["Dense_0"]["kernel"].shape == (3, 2)


def test_a_parameter_of_another_shape_is_refused_as_by_flax():
    variables = layers.Dense(1).init(jax.random.key(0), IMAGES)  # its bias could be broadcast
    for layer in (layers.Dense(4), nn.Dense(4)):
        with pytest.raises(ScopeParamShapeError):
            layer.apply(variables, IMAGES)
