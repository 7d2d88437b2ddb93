"""Conditions of a figure: the machine, its processors or GPU, and versions."""

import os
import platform
import sys
from importlib import metadata
from pathlib import Path


def describe() -> dict:
    """Returns the processor, its usable cores, load, versions, commit and device.

    `cores` is the number of cores that this process may use. The device is that of jax, read only if a case has
    imported jax.
    """
    from cdl_jax.run import workdir

    versions = {**workdir.versions(), "torch": _version("torch")}
    figures = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "load": [round(value, 1) for value in os.getloadavg()],
        "versions": {name: version for name, version in versions.items() if version},
        "commit": workdir.commit(),
    }
    if jax := sys.modules.get("jax"):
        figures |= {"device": jax.devices()[0].device_kind, "devices": len(jax.devices())}
    return figures


def _version(package):
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
