"""The mesh of devices, what is spread over it, and the start of several processes."""

import importlib.util
import math
import os
import sys
import traceback
import warnings
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from cdl_jax.errors import UserError
from cdl_jax.runtime import environment

_SPLIT = ("data", "fsdp")  # the axes of a mesh along which a batch is split
MIN_SHARDED_SIZE = 4096  # numbers; smaller arrays cost more to put together than to keep
HEARTBEAT_TIMEOUT = 30  # seconds without a sign of life after which a process counts as lost, and the others end


def init_distributed(spec: str) -> None:
    """Joins the processes of a run, and starts jax's devices.

    Args:
      spec: "off" for one process; "auto" where SLURM, Open MPI or a cloud's environment tells the rest; or
        "HOST:PORT,NUM_PROCESSES,PROCESS_ID".

    Raises:
      UserError: `spec` is of none of these forms, the others cannot be reached, or jax lacks its platform.
    """
    if spec == "off":
        _check_platform()
        return
    arguments = {}
    if spec != "auto":
        try:
            address, count, index = spec.split(",")
            arguments = {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
        except ValueError:
            raise UserError(f"--distributed={spec!r}: use off, auto or HOST:PORT,NUM_PROCESSES,PROCESS_ID") from None
    try:
        jax.config.update("jax_enable_preemption_service", False)  # it would take SIGTERM away: see `interruption`
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"\s*Kubernetes")  # six lines; `_remedy` has it in one
            jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT)
    except Exception as error:  # clients of clusters raise errors of their own
        kind = "" if isinstance(error, ValueError | RuntimeError) else f"{type(error).__name__}: "
        remedy = "" if arguments else _remedy(os.environ)
        raise UserError(f"--distributed={spec}: {kind}{' '.join(str(error).split())}{remedy}") from None
    _check_platform()
    check_gpus(os.environ, jax.default_backend(), jax.local_device_count())


def _remedy(environment: Mapping[str, str]) -> str:
    """Returns what to do where jax found no cluster, or could not read it."""
    if "KUBERNETES_SERVICE_HOST" in environment and not importlib.util.find_spec("kubernetes"):
        return "; in Kubernetes jax needs pip install 'jax[k8s]', or use HOST:PORT,NUM_PROCESSES,PROCESS_ID"
    return "; start under srun, mpirun or a Kubernetes job, or use HOST:PORT,NUM_PROCESSES,PROCESS_ID"


def _check_platform():
    """Raises UserError where jax finds no device of the platform that the environment names."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:  # jax 0.10 asserts where a named platform has no plug-in
        platform = jax.config.jax_platforms
        which = f"JAX_PLATFORMS={platform}" if platform else "its default platform"
        why = " ".join(str(error).split()) or "no such platform is installed"
        raise UserError(
            f"jax cannot start on {which} ({why[:200]}): set JAX_PLATFORMS=cpu, or install jax for this platform "
            '(pip install "jax[cuda12]") and look at its driver'
        ) from None


def check_gpus(environment: Mapping[str, str], platform: str, local_devices: int) -> None:
    """Refuses a SLURM job whose processes leave GPUs of their node idle.

    Args:
      environment: variables of the process; without SLURM_GPUS_ON_NODE nothing is checked.
      platform: jax's, "gpu" or another.
      local_devices: number of devices that this process sees.

    Raises:
      UserError: jax sees no GPU, or all processes of the node see fewer devices than the node has GPUs.
    """
    gpus = environment.get("SLURM_GPUS_ON_NODE", "")
    if not gpus.isdecimal() or int(gpus) == 0:
        return
    if platform != "gpu":
        raise UserError(
            f"this node gives the job {gpus} GPUs, but jax runs on {platform}: make the environment with CDL_CUDA=12, "
            "or ask for no GPUs"
        )
    layout = environment.get("SLURM_STEP_TASKS_PER_NODE", "1")  # such as 4(x2),3: nodes in order
    counts = []
    for part in layout.split(","):
        tasks, _, repeats = part.rstrip(")").partition("(x")
        counts += [int(tasks)] * int(repeats or 1)
    tasks = counts[min(int(environment.get("SLURM_NODEID", 0)), len(counts) - 1)]
    if tasks * local_devices < int(gpus):
        raise UserError(
            f"{tasks} processes of this node see {local_devices} GPUs each, and the job has {gpus} there: start one "
            f"process a GPU (--ntasks-per-node={gpus}), or ask for fewer GPUs"
        )


def abort(message: str) -> None:
    """Ends this process at once, after the error at hand and `message`, with exit code 1, of the machine's errors 2.

    An orderly end would wait for the other processes, which may be lost or wait for this one.
    """
    if line := environment.explain_error(sys.exception()):
        print(f"cdl_jax: {line}", file=sys.stderr, flush=True)
        os._exit(2)
    traceback.print_exc()
    print(message, file=sys.stderr, flush=True)
    os._exit(1)


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
