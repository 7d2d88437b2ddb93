"""Calls of the real command line."""

import contextlib
import io
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]
TINY = "tests/end_to_end/tiny.py"
_NO_REPORT = "--config.log.report=False"


def environment(**extra):
    """Returns this environment with the repository on the path.

    This environment names the tests' cache of compiled programs.
    """
    flags = " ".join(filter(None, (os.environ.get("XLA_FLAGS"), extra.pop("XLA_FLAGS", ""))))
    return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **extra, "XLA_FLAGS": flags}


def command_line(arguments):
    """Returns the arguments as words, without a report unless they name one."""
    words = [*map(str, arguments)]
    return words if any(word.startswith("--config.log.report") for word in words) else [*words, _NO_REPORT]


def start(*arguments, **extra):
    """Starts `python -m cdl_jax.main`; returns the running process.

    The working directory is the root of the repository.
    """
    return subprocess.Popen(
        [sys.executable, "-m", "cdl_jax.main", *command_line(arguments)],
        cwd=ROOT, env=environment(**extra), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        errors="backslashreplace",
    )  # fmt: skip


def run_in_process(*arguments, expect=0):
    """Runs the command inside this process; returns (stdout, stderr).

    This process has loaded jax already, which saves a third of the time of `run`. Log lines of warnings may be missing
    from stderr: pytest captures them.
    """
    from cdl_jax import main

    out, err = io.StringIO(), io.StringIO()
    with contextlib.chdir(ROOT), contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main.main(command_line(arguments))
    assert code == expect, f"exit code {code}\n{out.getvalue()}\n{err.getvalue()}"
    return out.getvalue(), err.getvalue()


def run(*arguments, expect=0, timeout=240, **extra):
    """Runs the command in a process of its own; returns (stdout, stderr).

    Its exit code must be `expect`.
    """
    process = start(*arguments, **extra)
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == expect, f"exit code {process.returncode}\n{out}\n{err}"
    return out, err


def signal_at_line(process, workdir, lines, number):
    """Sends a running process the signal once metrics.jsonl has `lines` lines."""
    path, deadline = Path(workdir) / "metrics.jsonl", time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            process.send_signal(number)
            break
        time.sleep(0.002)


def run_in_two(*arguments, workdir, stop_at=None, **extra):
    """Runs a command as two local processes; returns (stdout, stderr) of each.

    Args:
        stop_at: number of lines of metrics.jsonl after which the second process receives SIGTERM. Both must end then.
            Default: None, both must end well.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both = (*arguments, "--workdir", workdir)
    processes = [start(*both, f"--distributed=127.0.0.1:{port},2,{index}", **extra) for index in range(2)]
    try:
        if stop_at:
            signal_at_line(processes[1], workdir, stop_at, signal.SIGTERM)
        outputs = [process.communicate(timeout=240) for process in processes]
        for process, (out, err) in zip(processes, outputs, strict=True):
            assert process.returncode == (128 + signal.SIGTERM if stop_at else 0), out + err
        return outputs
    finally:
        for process in processes:
            process.kill()  # a process that waits for the other one would wait forever


def results(workdir):
    """Reads results.json of a run."""
    return json.loads((Path(workdir) / "results.json").read_text())


def matrices(workdir):
    """Returns network -> accuracy matrix of a run."""
    return {name: network["accuracy_matrix"] for name, network in results(workdir)["networks"].items()}


def last_weights(workdir, task):
    """Reads {path: array} of the live variables saved after a task."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    path = (Path(workdir) / "checkpoints" / "tasks" / str(task) / "state").absolute()
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # whatever mesh the run had
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata(path).item_metadata.tree
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device), saved)
        tree = checkpointer.restore(path, target)
    return {jax.tree_util.keystr(p): np.asarray(leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}
