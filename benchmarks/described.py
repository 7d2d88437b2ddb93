"""Compiles an experiment's steps for GPUs that are only described.

The machine needs no GPU. It needs CUDA's libraries, 5 GB, best in an environment of its own:
pip install -r requirements-gpu.txt. The programs are the real ones, except that XLA chooses no kernel by timing it.
Nothing is run.
"""

import dataclasses
import importlib.util
import os
from collections.abc import Iterator, Sequence

from benchmarks import kernels
from cdl_jax.errors import UserError


def start_jax(devices: int = 1) -> None:
    """Prepares jax before it starts.

    Args:
      devices: number of devices that the processor simulates. An experiment is built on them.

    Raises:
      UserError: the environment has no compiler for CUDA.
    """
    plugins = ("jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13")
    if importlib.util.find_spec("jax_plugins") is None or not any(map(importlib.util.find_spec, plugins)):
        raise UserError(
            "benchmarks: a described card needs XLA's compiler for CUDA: pip install -r requirements-gpu.txt"
        )
    import jax

    jax.config.update("jax_platforms", "cpu")
    flags = os.environ.get("XLA_FLAGS", ""), f"--xla_force_host_platform_device_count={devices}"
    os.environ["XLA_FLAGS"] = " ".join(flags).strip()


def compile_steps(config, data, card: kernels.Card, phases: Sequence[str] = ()) -> Iterator[tuple]:
    """Yields (phase, its compiled step).

    Args:
      config: a complete config; `devices` GPUs of one host, 0 or 1: one.
      data: the stream.
      card: the kind of GPU.
      phases: names of those to compile; empty: all.
    """
    import jax
    import numpy as np
    from jax.experimental import topologies

    from cdl_jax.runtime import target
    from cdl_jax.training.compiled import CompiledSteps
    from cdl_jax.training.experiment import Experiment

    # Slices, hosts of a slice, devices of a host.
    described = {"platform": "cuda", "topology": f"1x1x{max(1, config.devices)}", "target_config": card.description}
    devices = topologies.get_topology_desc(card.name, **described).devices
    with target.assume(target.Target(card.name, "cuda", card.capability)):
        experiment = Experiment.build(config, data)
        steps = CompiledSteps(experiment)
    here = experiment.mesh
    there = jax.sharding.Mesh(np.array(devices).reshape(here.devices.shape), here.axis_names)
    steps.experiment = dataclasses.replace(experiment, mesh=there)

    def describe(x):
        spec = getattr(getattr(x, "sharding", None), "spec", jax.sharding.PartitionSpec())
        return jax.ShapeDtypeStruct(jax.numpy.shape(x), x.dtype, sharding=jax.sharding.NamedSharding(there, spec))

    for index, phase in enumerate(experiment.method.phases):
        if phases and phase.name not in phases:
            continue
        with target.assume(target.Target(card.name, "cuda", card.capability)), steps.mesh_context():
            step, inputs = steps.traceable_step(index)
            inputs = jax.tree.map(describe, inputs)
            yield phase.name, jax.jit(step, donate_argnums=0).lower(*inputs).compile()


def memory(step) -> dict[str, int]:
    """Returns the bytes that a compiled step takes on each device.

    `held`: bytes of the arguments. `work`: bytes that the step works with.
    """
    sizes = step.memory_analysis()
    return {"held": sizes.argument_size_in_bytes, "work": sizes.temp_size_in_bytes}
