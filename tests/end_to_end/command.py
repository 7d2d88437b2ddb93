"""Calls of the real command line."""

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


def environment(**extra):
    """Returns this environment, which names the tests' cache of compiled programs, with the repository on the path."""
    flags = " ".join(filter(None, (os.environ.get("XLA_FLAGS"), extra.pop("XLA_FLAGS", ""))))
    return {**os.environ, "PYTHONPATH": str(ROOT), "JAX_PLATFORMS": "cpu", **extra, "XLA_FLAGS": flags}


def start(*arguments, **extra):
    """A running `python -m cdl_jax.main` in the repository's root; it draws no report unless its arguments say so."""
    arguments = [*map(str, arguments)]
    if not any(word.startswith("--config.log.report") for word in arguments):
        arguments.append("--config.log.report=False")
    return subprocess.Popen(
        [sys.executable, "-m", "cdl_jax.main", *arguments],
        cwd=ROOT, env=environment(**extra), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        errors="backslashreplace",
    )  # fmt: skip


def run(*arguments, expect=0, timeout=240, **extra):
    """(stdout, stderr) of a finished command; its exit code must be `expect`."""
    process = start(*arguments, **extra)
    out, err = process.communicate(timeout=timeout)
    assert process.returncode == expect, f"exit code {process.returncode}\n{out}\n{err}"
    return out, err


def signal_at_line(process, workdir, lines, number):
    """Sends a running process the signal once metrics.jsonl has so many lines."""
    path, deadline = Path(workdir) / "metrics.jsonl", time.monotonic() + 200
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            process.send_signal(number)
            break
        time.sleep(0.002)


def run_in_two(*arguments, workdir, stop_at=None, **extra):
    """Runs a command as two processes that reach each other on this machine; both must end well.

    With `stop_at` only the second is told to end, after so many lines; both must end for it. Returns what both said.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    both = (*arguments, "--workdir", workdir)
    processes = [start(*both, f"--distributed=127.0.0.1:{port},2,{index}", **extra) for index in range(2)]
    try:
        if stop_at:
            signal_at_line(processes[1], workdir, stop_at, signal.SIGTERM)
        said = [process.communicate(timeout=240) for process in processes]
        for process, (out, err) in zip(processes, said, strict=True):
            assert process.returncode == (128 + signal.SIGTERM if stop_at else 0), out + err
        return said
    finally:
        for process in processes:
            process.kill()  # one that waits for the other would wait for ever


def results(workdir):
    """The run's results.json."""
    return json.loads((Path(workdir) / "results.json").read_text())


def matrices(workdir):
    """Network -> accuracy matrix of a run."""
    return {name: network["accuracy_matrix"] for name, network in results(workdir)["networks"].items()}


def last_weights(workdir, task):
    """{path: array} of the live variables saved after a task, read as they lie on disk."""
    import jax
    import numpy as np
    import orbax.checkpoint as ocp

    path = (Path(workdir) / "checkpoints" / "tasks" / str(task) / "state").absolute()
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # whatever mesh the run had
    with ocp.StandardCheckpointer() as checkpointer:
        saved = checkpointer.metadata(path).item_metadata.tree
        target = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), saved)
        tree = checkpointer.restore(path, target)
    return {jax.tree_util.keystr(p): np.asarray(leaf) for p, leaf in jax.tree_util.tree_leaves_with_path(tree)}
