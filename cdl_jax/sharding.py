"""The mesh of devices, what is spread over it, and the start of several processes."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cdl_jax.errors import UserError


def start(spec: str) -> None:
    """Joins the processes of a run before any device is used.

    Args:
      spec: "off" for one process; "auto" where SLURM, Open MPI or a cloud's environment tells the rest; or
        "HOST:PORT,NUM_PROCESSES,PROCESS_ID".

    Raises:
      UserError: `spec` is of none of these forms, or the others cannot be reached.
    """
    if spec == "off":
        return
    arguments = {}
    if spec != "auto":
        try:
            address, count, index = spec.split(",")
            arguments = {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
        except ValueError:
            raise UserError(f"--distributed={spec!r}: use off, auto or HOST:PORT,NUM_PROCESSES,PROCESS_ID") from None
    try:
        jax.distributed.initialize(**arguments)
    except (ValueError, RuntimeError) as error:
        raise UserError(f"--distributed={spec}: {' '.join(str(error).split())}") from None


def make_mesh(devices: int = 0, peers: int = 1) -> Mesh:
    """A mesh with the axis `data` over the first `devices` of all devices (0: over all).

    With `peers` above 1 it has a second axis, `peer`, of that length, along which methods may spread networks.

    Raises:
      UserError: there are not so many, or they cannot be split evenly.
    """
    available = jax.devices()
    if devices > len(available):
        raise UserError(f"config.devices={devices}, but this machine has {len(available)}: choose at most that")
    chosen = available[:devices] if devices else available
    if peers > 1:
        if len(chosen) % peers:
            raise UserError(f"config.peer_devices={peers} does not divide the {len(chosen)} devices: choose a divisor")
        shape, axes = (len(chosen) // peers, peers), ("data", "peer")
        return jax.make_mesh(shape, axes, axis_types=(AxisType.Auto,) * 2, devices=chosen)
    # Explicit axes, the default of make_mesh, refuse the gathers that prompt pools are made of.
    return jax.make_mesh((len(chosen),), ("data",), axis_types=(AxisType.Auto,), devices=chosen)


def check_batch(mesh: Mesh, batch_size: int, key: str) -> None:
    """Raises UserError where a batch cannot be split evenly over the mesh."""
    shares = mesh.shape["data"]
    if batch_size % shares:
        raise UserError(f"config.{key}={batch_size} cannot be split evenly over {shares} devices: use a multiple of it")


def whole(mesh: Mesh) -> NamedSharding:
    """Where every device of the mesh holds all of an array."""
    return NamedSharding(mesh, PartitionSpec())


def replicate(mesh: Mesh, tree):
    """A copy of `tree` in which every device of the mesh holds every leaf whole."""
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(whole(mesh), np.asarray(x)), tree)


def abstract(mesh: Mesh, tree):
    """Shapes and types of `tree`, to be held whole by every device of the mesh."""
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole(mesh)), tree)
