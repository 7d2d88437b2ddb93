"""The start and the end of runs with several processes."""

import importlib.util
import os
import sys
import traceback
import warnings
from collections.abc import Mapping

import jax

from cdl_jax.errors import UserError
from cdl_jax.runtime import environment

HEARTBEAT_TIMEOUT = 30  # seconds without a sign of life after which a process counts as lost, and the others end


def initialize(spec: str) -> None:
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
