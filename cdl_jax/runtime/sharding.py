"""The mesh of devices, and what is spread over it."""

import math

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cdl_jax.errors import UserError

_SPLIT = ("data", "fsdp")  # the axes of a mesh along which a batch is split
MIN_SHARDED_SIZE = 4096  # numbers; smaller arrays cost more to put together than to keep


def make_mesh(devices: int = 0, peers: int = 1, fsdp: int = 1) -> Mesh:
    """A mesh with the axis `data` over the first `devices` of all devices (0: over all).

    With `peers` above 1 it has a second axis, `peer`, of that length, along which methods may spread networks; with
    `fsdp` above 1 a second axis `fsdp`, over which batches are split too and large arrays are stored in parts.

    Raises:
      UserError: there are not so many, or they cannot be split evenly.
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
    # Explicit axes, the default of make_mesh, refuse the gathers that prompt pools are made of.
    return jax.make_mesh((len(chosen),), ("data",), axis_types=(AxisType.Auto,), devices=chosen)


def check_batch(mesh: Mesh, batch_size: int, key: str) -> None:
    """Raises UserError where a batch cannot be split evenly over the mesh."""
    if batch_size % (count := num_batch_shards(mesh)):
        raise UserError(f"config.{key}={batch_size} cannot be split evenly over {count} devices: use a multiple of it")


def replicated(mesh: Mesh) -> NamedSharding:
    """Where every device of the mesh holds all of an array."""
    return NamedSharding(mesh, PartitionSpec())


def param_sharding(mesh: Mesh, shape: tuple[int, ...]) -> NamedSharding:
    """How an array of parameters lies between steps.

    On a mesh with an axis `fsdp` one of at least 4096 numbers is split over it, along the longest of its axes that can
    be split evenly (Rajbhandari et al., "ZeRO", 2020, stage 3); all others are held whole by every device.
    """
    parts = mesh.shape.get("fsdp", 1)
    fitting = [axis for axis, length in enumerate(shape) if length % parts == 0]
    if parts == 1 or math.prod(shape) < MIN_SHARDED_SIZE or not fitting:
        return replicated(mesh)
    longest = max(fitting, key=lambda axis: shape[axis])
    return NamedSharding(mesh, PartitionSpec(*(None,) * longest, "fsdp"))


def shard(mesh: Mesh, tree):
    """Copies `tree` to the devices of the mesh by `param_sharding`; every process holds all of `tree`."""

    def put(leaf):
        leaf = np.asarray(leaf)
        return jax.make_array_from_callback(leaf.shape, param_sharding(mesh, leaf.shape), lambda index: leaf[index])

    return jax.tree.map(put, tree)


def abstract_tree(mesh: Mesh, tree):
    """Shapes and types of `tree`, to lie as `param_sharding` says."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=param_sharding(mesh, x.shape)), tree)


def unshard(mesh: Mesh, tree):
    """`tree` in a traced function, its parts put together again; each leaf when it is needed, for the compiler to say.

    Without this the compiler may split matrix products instead, and send activations, which are larger.
    """
    if "fsdp" not in mesh.shape:
        return tree
    return jax.tree.map(lambda x: jax.lax.with_sharding_constraint(x, replicated(mesh)), tree)


def batch_sharding(mesh: Mesh, stacked: bool = False) -> NamedSharding:
    """How a batch lies on the devices: split along the mesh's axes "data" and, where there is one, "fsdp".

    stacked: the array holds several batches, their axis in front.
    """
    axes = tuple(axis for axis in mesh.axis_names if axis in _SPLIT)
    return NamedSharding(mesh, PartitionSpec(*(None,) * stacked, axes))


def num_batch_shards(mesh: Mesh) -> int:
    """Into how many parts a batch is split."""
    return math.prod(size for axis, size in mesh.shape.items() if axis in _SPLIT)
