"""Memory, files and time of a run of many tasks, from its beginning to its end.

    python -m benchmarks.run long_run [--tasks 200] [--reports SECONDS] [--folder DIR] [--out FILE.json]

A small network learns images of noise, one class a task, through the very loop that `cdl_jax.main` runs, with a
checkpoint after each task and within it. Looked at before each batch, in this process: memory of the host that the
process has for itself, be it resident or swapped (pages of files, such as libraries, come and go as the system likes),
bytes and number of arrays that live on devices, open files and threads. The table: medians over a tenth of the tasks,
the growth per task in the second half, by a straight line through it, and the sizes of the last results.json and
checkpoint. A matrix of accuracies has as many numbers as half the square of the tasks: some growth is due.
"""

import os
import statistics
import tempfile
import threading
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np

from cdl_jax import config as configs
from cdl_jax.data import stream
from cdl_jax.run import logger, loop, workdir
from cdl_jax.runtime.signals import SignalHandler
from cdl_jax.training.experiment import Experiment

_SIDE, _TRAIN, _TEST = 32, 8, 2  # pixels, images of a class
_GROW = ("host_mib", "device_mib", "arrays", "files", "threads")


def noise_file(path: Path, classes: int) -> None:
    """Writes noise as the source `arrays` reads it."""
    draw = np.random.default_rng(0)
    arrays = {}
    for part, count in (("train", _TRAIN), ("test", _TEST)):
        arrays[f"x_{part}"] = draw.integers(0, 256, (classes * count, _SIDE, _SIDE, 3), dtype=np.uint8)
        arrays[f"y_{part}"] = np.repeat(np.arange(classes), count)
    np.savez(path, **arrays)


def configured(path: Path, tasks: int):
    """The config of the run."""
    config = configs.default("supervised", data="arrays", network="slim_resnet18")
    config.network.update(width=2, depths=(1, 1), image_size=_SIDE)
    config.data.update(path=str(path), num_tasks=tasks)
    config.train.update(epochs=2, batch_size=4)
    config.eval.update(forward_transfer=False, batch_size=_TEST * tasks)
    config.supervised.classes = "all"  # a task has one class, and a softmax over one class has a loss of 0
    config.checkpoint.every_steps = 3
    config.log.every_steps = 2
    return config


class Probe(SignalHandler):
    """Looks at this process where a run looks whether it is to end."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def stop_requested(self):
        arrays = jax.live_arrays()
        status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
        self.seen.append(
            {
                "host_mib": sum(int(status[name].split()[0]) for name in ("RssAnon", "VmSwap")) / 1024,
                "device_mib": sum(array.nbytes for array in arrays) / 2**20,
                "arrays": len(arrays),
                "files": len(os.listdir("/proc/self/fd")),
                "threads": threading.active_count(),
                "seconds": time.perf_counter(),
            }
        )


def looked(tasks: int, reports: float, folder: Path) -> dict:
    """Returns medians over tenths of a run's tasks, by name.

    `seconds` are those of a task. `growth`: see the module.

    reports: seconds between reports, 0: none. What they need for a moment grows with the tasks that they show.
    """
    path = folder / "noise.npz"
    noise_file(path, tasks)
    config = configured(path, tasks)
    config.log.report = reports > 0
    probe = Probe()
    with workdir.locked(folder / "run"), mock.patch.object(logger, "REPORT_INTERVAL", reports):
        loop.train(Experiment.build(config, stream.load(config.data, config.seed)), folder / "run", probe)
    each = len(probe.seen) // tasks
    tenth = max(tasks // 10, 1)
    found = {}
    for first in range(0, tasks, tenth):
        part = probe.seen[first * each : (first + tenth) * each + 1]
        medians = {name: statistics.median(look[name] for look in part) for name in part[0]}
        medians["seconds"] = (part[-1]["seconds"] - part[0]["seconds"]) / tenth
        found[f"{first}-{first + tenth - 1}"] = medians
    half = probe.seen[tasks // 2 * each :]
    growth = {name: float(np.polyfit(range(len(half)), [look[name] for look in half], 1)[0]) * each for name in _GROW}
    last = folder / "run" / "checkpoints" / "tasks" / str(tasks - 1)
    sizes = {
        "results_kib": (folder / "run" / "results.json").stat().st_size / 1024,
        "checkpoint_kib": sum(file.stat().st_size for file in last.rglob("*") if file.is_file()) / 1024,
    }
    return {"tasks": found, "growth": growth, "sizes": sizes}


def arguments(parser) -> None:
    """Adds the case's options."""
    parser.add_argument("--tasks", type=int, default=200)
    parser.add_argument("--reports", type=float, default=0, help="seconds between reports (default: none)")
    parser.add_argument("--folder", type=Path, help="an empty one (default: a temporary one)")


def measure(options) -> dict:
    """Prints the table; returns its figures."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.folder or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        found = looked(options.tasks, options.reports, folder)
    names = list(next(iter(found["tasks"].values())))
    print("| tasks | " + " | ".join(names) + " |")
    print("|---" * (len(names) + 1) + "|")
    for part, medians in found["tasks"].items():
        print(f"| {part} | " + " | ".join(f"{medians[name]:.6g}" for name in names) + " |")
    for what in ("growth", "sizes"):
        print(what, {name: round(value, 3) for name, value in found[what].items()})
    return found
