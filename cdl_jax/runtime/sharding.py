"""Device meshes, and the sharding of parameters and batches over them."""

import math
from typing import TypeVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cdl_jax.errors import UserError

Tree = TypeVar("Tree")  # a pytree of arrays

BATCH_AXES = ("data", "fsdp")  # the axes of a mesh along which a batch is split
MIN_SHARDED_SIZE = 4096  # elements; the all-gather of a smaller array costs more than its replication


def make_mesh(devices: int = 0, peers: int = 1, fsdp: int = 1) -> Mesh:
    """Makes a mesh of devices.

    The mesh has the axis `data`, and the axis `peer` or `fsdp` if its length exceeds 1.

    Args:
      devices: number of devices, the first of all. 0: all devices.
      peers: length of the axis `peer`, over which methods may place whole networks.
      fsdp: length of the axis `fsdp`, over which batches are split and large parameters are sharded.

    Returns:
      A mesh of shape (devices,), (devices / peers, peers) or (devices / fsdp, fsdp).

    Raises:
      UserError: there are fewer devices, an axis does not divide them, or both axes are requested.
    """
    available = jax.devices()
    if devices > len(available):
        raise UserError(f"config.devices={devices}, but this machine has {len(available)}: choose at most that")
    chosen = available[:devices] if devices else available
    if peers > 1 and fsdp > 1:
        raise UserError("config.peer_devices and config.fsdp_devices cannot be combined: leave one of them at 1")
    for axis, length in (("peer", peers), ("fsdp", fsdp)):
        if len(chosen) % length:
            raise UserError(
                f"config.{axis}_devices={length} does not divide the {len(chosen)} devices: choose a divisor"
            )
        if length > 1:
            shape, axes = (len(chosen) // length, length), ("data", axis)
            return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * 2, devices=chosen)
    # Explicit axes, the default of make_mesh, do not support the gathers of prompt pools.
    return jax.make_mesh((len(chosen),), ("data",), axis_types=(AxisType.Auto,), devices=chosen)


def check_batch(mesh: Mesh, batch_size: int, key: str) -> None:
    """Checks that a batch can be split evenly over the mesh.

    Args:
      mesh: the mesh.
      batch_size: number of images.
      key: the config key of the batch size, for the message.

    Raises:
      UserError: the number of shards does not divide the batch size.
    """
    if batch_size % (count := num_batch_shards(mesh)):
        raise UserError(f"config.{key}={batch_size} cannot be split evenly over {count} devices: use a multiple of it")


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of an array that every device of the mesh holds completely."""
    return NamedSharding(mesh, PartitionSpec())


def param_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """Returns the sharding of a parameter between steps.

    On a mesh with an axis `fsdp`, an array of at least `MIN_SHARDED_SIZE` elements is sharded along its longest
    axis whose length is a multiple of the number of shards. All other arrays are replicated.

    Args:
      mesh: the mesh.
      shape: shape of the parameter.

    Source:
      Rajbhandari et al., "ZeRO", 2020, stage 3.
    """
    shards = mesh.shape.get("fsdp", 1)
    divisible_axes = [axis for axis, length in enumerate(shape) if length % shards == 0]
    if shards == 1 or math.prod(shape) < MIN_SHARDED_SIZE or not divisible_axes:
        return replicated(mesh)
    longest = max(divisible_axes, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*(None,) * longest, "fsdp"))


def shard(mesh: Mesh, tree: Tree) -> Tree:
    """Copies a tree to the devices of the mesh, each leaf by its `param_sharding`.

    Args:
      mesh: the mesh.
      tree: arrays; every process has the complete tree.
    """

    def put(leaf):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, param_sharding(mesh, leaf.shape), lambda index: leaf[index])

    return jax.tree.map(put, tree)


def abstract_tree(mesh: Mesh, tree: Tree) -> Tree:
    """Returns the `jax.ShapeDtypeStruct` of each leaf, with its `param_sharding`."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=param_sharding(mesh, x.shape)), tree)


def unshard(mesh: Mesh, tree: Tree) -> Tree:
    """All-gathers the sharded parameters of a tree, inside a traced function.

    The compiler places the all-gather of each leaf where the leaf is needed. Without this constraint the compiler may
    split matrix products instead and communicate activations, which are larger.
    """
    if "fsdp" not in mesh.shape:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, replicated(mesh)), tree)


def batch_sharding(mesh: Mesh, stacked: bool = False) -> NamedSharding:
    """Returns the sharding of a batch.

    The axis of images is split over the mesh's axes `data` and `fsdp`.

    Args:
      mesh: the mesh.
      stacked: whether an axis of several batches precedes the axis of images.
    """
    axes = tuple(axis for axis in mesh.axis_names if axis in BATCH_AXES)
    return NamedSharding(mesh, PartitionSpec(*(None,) * stacked, axes))


def num_batch_shards(mesh: Mesh) -> int:
    """Returns the number of shards into which a batch is split.

    >>> num_batch_shards(make_mesh(devices=1))
    1
    """
    return math.prod(size for axis, size in mesh.shape.items() if axis in BATCH_AXES)
