"""Meshes, and the sharding of batches and parameters; one-line refusals."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh

from cdl_jax.errors import UserError
from cdl_jax.runtime import sharding


def refusal(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_batch_must_be_a_multiple_of_the_devices():
    three = SimpleNamespace(shape={"data": 3, "peer": 2})
    sharding.check_batch(three, 12, "train.batch_size")
    assert refusal(sharding.check_batch, three, 13, "eval.batch_size") == (
        "config.eval.batch_size=13 cannot be split evenly over 3 devices: use a multiple of it"
    )


def test_a_mesh_uses_at_most_the_available_devices():
    count = len(jax.devices())
    assert refusal(sharding.make_mesh, count + 1).startswith(
        f"config.devices={count + 1}, but this machine has {count}: choose"
    )
    assert (sharding.make_mesh().size, sharding.make_mesh(1).size) == (count, 1)
    assert sharding.make_mesh(1).axis_names == ("data",)


def test_large_parameters_are_sharded_over_the_fsdp_axis():
    devices = AbstractMesh((2, 4), ("data", "fsdp"))
    spec = lambda *shape: tuple(sharding.param_sharding(devices, shape).spec)  # noqa: E731
    assert spec(768, 3072) == (None, "fsdp") and spec(3, 3072, 768) == (None, "fsdp")
    assert spec(1023, 8) == (None, "fsdp") and spec(1023, 7) == ()  # 7 and 1023 are no multiples of 4
    assert spec(63, 64) == ()  # 4032 numbers
    assert tuple(sharding.param_sharding(AbstractMesh((8,), ("data",)), (768, 3072)).spec) == ()
    message = refusal(sharding.make_mesh, 1, 2, 2)
    assert message == "config.peer_devices and config.fsdp_devices cannot be combined: leave one of them at 1"
    assert "config.fsdp_devices=3 does not divide the 1 devices" in refusal(sharding.make_mesh, 1, 1, 3)


def test_sharded_and_abstract_trees_have_the_same_shapes_and_dtypes():
    mesh = sharding.make_mesh(1)
    tree = {"a": np.arange(6, dtype=np.int32).reshape(2, 3), "b": {"c": jnp.bfloat16(1.5)}}
    copy, outline = sharding.shard(mesh, tree), sharding.abstract_tree(mesh, tree)
    np.testing.assert_array_equal(copy["a"], tree["a"])
    assert float(copy["b"]["c"]) == 1.5
    for leaf in (*jax.tree.leaves(copy), *jax.tree.leaves(outline)):
        assert leaf.sharding.is_fully_replicated and leaf.sharding.mesh == mesh
    assert [(x.shape, x.dtype) for x in jax.tree.leaves(outline)] == [((2, 3), np.int32), ((), jnp.bfloat16)]
