"""Start and end of a run with several processes."""

import importlib.util
import os
import sys
import traceback
import warnings
from collections.abc import Mapping

import jax

from cdl_jax.errors import UserError
from cdl_jax.runtime import environment

HEARTBEAT_TIMEOUT = 30  # seconds without a heartbeat after which a process counts as lost and the others end


def initialize(spec: str) -> None:
    """Joins the processes of a run and starts the devices of jax.

    Args:
      spec: "off": one process. "auto": SLURM, Open MPI or a cloud provides addresses and numbers. Otherwise
        "HOST:PORT,NUM_PROCESSES,PROCESS_ID".

    Raises:
      UserError: `spec` has another form, the other processes are out of reach, or jax lacks its platform.
    """
    arguments = check_spec(spec)
    if spec == "off":
        _check_platform()
        return
    try:
        jax.config.update("jax_enable_preemption_service", False)  # it would replace the SIGTERM handler of `signals`
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=r"\s*Kubernetes")  # six lines; `_remedy` has one
            jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT)
    except Exception as error:  # clients of clusters raise errors of their own types
        kind = "" if isinstance(error, ValueError | RuntimeError) else f"{type(error).__name__}: "
        remedy = "" if arguments else _remedy(os.environ)
        raise UserError(f"--distributed={spec}: {kind}{' '.join(str(error).split())}{remedy}") from None
    _check_platform()
    check_gpus(os.environ, jax.default_backend(), jax.local_device_count())


def check_spec(spec: str) -> dict[str, str | int]:
    """Returns the arguments of `jax.distributed.initialize`.

    `spec` is a value of --distributed. The values off and auto have no arguments.

    Raises:
      UserError: `spec` has another form.

    >>> check_spec("node0:1234,2,1")
    {'coordinator_address': 'node0:1234', 'num_processes': 2, 'process_id': 1}
    """
    if spec in ("off", "auto"):
        return {}
    try:
        address, count, index = spec.split(",")
        return {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
    except ValueError:
        raise UserError(f"--distributed={spec!r}: use off, auto or HOST:PORT,NUM_PROCESSES,PROCESS_ID") from None


def _remedy(variables: Mapping[str, str]) -> str:
    """Returns what to do if jax finds no cluster or cannot read its settings."""
    if "KUBERNETES_SERVICE_HOST" in variables and not importlib.util.find_spec("kubernetes"):
        return "; in Kubernetes jax needs pip install 'jax[k8s]', or use HOST:PORT,NUM_PROCESSES,PROCESS_ID"
    return "; start under srun, mpirun or a Kubernetes job, or use HOST:PORT,NUM_PROCESSES,PROCESS_ID"


def _check_platform():
    """Raises UserError if jax finds no device of its platform."""
    try:
        jax.devices()
    # jax 0.10 asserts if JAX_PLATFORMS names a platform without plug-in.
    except (RuntimeError, AssertionError) as error:
        platform = jax.config.jax_platforms
        platform_text = f"JAX_PLATFORMS={platform}" if platform else "its default platform"
        reason = " ".join(str(error).split()) or "no such platform is installed"
        raise UserError(
            f"jax cannot start on {platform_text} ({reason[:200]}): set JAX_PLATFORMS=cpu, or install jax for this "
            'platform (pip install "jax[cuda12]") and check its driver'
        ) from None


def check_gpus(variables: Mapping[str, str], platform: str, local_devices: int) -> None:
    """Checks that the processes of a SLURM job use all GPUs of their node.

    Args:
      variables: environment variables. Without SLURM_GPUS_ON_NODE nothing is checked.
      platform: the platform of jax, such as "gpu".
      local_devices: number of devices of this process.

    Raises:
      UserError: jax uses no GPU, or all processes of the node together use fewer devices than the node has GPUs.
    """
    gpus = variables.get("SLURM_GPUS_ON_NODE", "")
    if not gpus.isdecimal() or int(gpus) == 0:
        return
    if platform != "gpu":
        raise UserError(
            f"this node gives the job {gpus} GPUs, but jax runs on {platform}: make the environment with CDL_CUDA=12, "
            "or request no GPUs"
        )
    layout = variables.get("SLURM_STEP_TASKS_PER_NODE", "1")  # such as 4(x2),3: nodes in order
    tasks_per_node = []
    for part in layout.split(","):
        tasks, _, repeats = part.rstrip(")").partition("(x")
        tasks_per_node += [int(tasks)] * int(repeats or 1)
    tasks = tasks_per_node[min(int(variables.get("SLURM_NODEID", 0)), len(tasks_per_node) - 1)]
    if tasks * local_devices < int(gpus):
        raise UserError(
            f"{tasks} processes of this node use {local_devices} GPUs each, and the job has {gpus} there: start one "
            f"process per GPU (--ntasks-per-node={gpus}), or request fewer GPUs"
        )


def abort(message: str) -> None:
    """Prints the current exception and `message`, then ends this process at once.

    The exit code is 1. For an error of the machine the exit code is 2, and one line with cause and remedy is printed
    instead. An orderly exit would wait for the other processes, which may be lost or may themselves wait for this
    process.
    """
    if line := environment.explain_error(sys.exception()):
        print(f"cdl_jax: {line}", file=sys.stderr, flush=True)
        os._exit(2)
    traceback.print_exc()
    print(message, file=sys.stderr, flush=True)
    os._exit(1)
