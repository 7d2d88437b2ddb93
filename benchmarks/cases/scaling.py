"""Bytes that a step of CDL sends between devices, and the modelled efficiency on many GPUs.

    python -m benchmarks.run scaling --size b_s [--devices 2 8] [--fsdp 1 4]

Steps are compiled for devices that one processor simulates; nothing is run. The table has the collectives of the
compiled program, with the bytes of their results, and the memory of a device. The prediction is weak scaling: the
same images a device, whatever their number.
"""

import math
import os
import re
from dataclasses import dataclass

from benchmarks import timing

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_COLLECTIVE = re.compile(rf"= (\([^)]*\)|\S+) ({_KINDS})\(")
_ARRAY = re.compile(r"(pred|[a-z]+(\d+))\[([\d,]*)\]")


@dataclass(frozen=True)
class Cluster:
    """Assumptions of the prediction. flops: a second, of a device at work. links: bytes a second that a device sends
    within a host of `host` devices, and beyond it. latency: seconds that a collective takes at least."""

    flops: float = 0.4 * 989e12  # H200, bf16 without sparsity, 40 % of its peak
    host: int = 8
    links: tuple[float, float] = (450e9, 50e9)  # NVLink 4; one 400 Gb/s card for each GPU
    latency: float = 30e-6


def collectives(program: str) -> dict[str, tuple[int, int]]:
    """kind -> (how many, bytes of their results) in the text of a compiled program."""
    found = {}
    for result, kind in _COLLECTIVE.findall(program):
        count, size = found.get(kind, (0, 0))
        found[kind] = count + 1, size + sum(_bytes(*array) for array in _ARRAY.findall(result))
    return found


def _bytes(kind, bits, shape):
    numbers = math.prod(int(length) for length in shape.split(",") if length)
    return numbers * (1 if kind == "pred" else int(bits) // 8)


def efficiency(flops: float, sent: dict[str, tuple[int, int]], devices: int, fsdp: int, cluster: Cluster) -> float:
    """Share of the time that a device computes, if it sends only when it does not.

    flops: of one device's step. A ring of n moves `(n - 1) / n` of a result once, to reduce it to all twice, over its
    slowest link; a collective cannot be faster than its latency. What is no sum is put together among the `fsdp`
    devices that hold its parts.
    """
    seconds = 0.0
    for kind, (count, size) in sent.items():
        ring = fsdp if fsdp > 1 and kind != "all-reduce" else devices
        passes = (2 if kind == "all-reduce" else 1) * (ring - 1) / ring
        seconds += passes * size / cluster.links[ring > cluster.host] + count * cluster.latency * (ring > 1)
    work = flops / cluster.flops
    return work / (work + seconds)


def arguments(parser) -> None:
    """Adds the case's options."""
    from benchmarks import cdl_sizes

    parser.add_argument("--size", choices=cdl_sizes.SIZES, default="tiny")
    parser.add_argument("--learner", choices=cdl_sizes.LEARNERS, default="l2p")
    parser.add_argument("--devices", nargs="+", type=int, default=[2, 8], help="simulated ones")
    parser.add_argument("--fsdp", nargs="+", type=int, default=[1, 4], help="over how many weights are stored in parts")
    parser.add_argument("--predict", nargs="+", type=int, default=[8, 64, 256, 1024])


def measure(options) -> dict:
    """Prints two tables; returns their figures."""
    # Read when jax starts. The scheduler of the other option keeps memory low, as that of GPUs does.
    flags = f"--xla_force_host_platform_device_count={max(options.devices)}"
    os.environ["XLA_FLAGS"] = " ".join((os.environ.get("XLA_FLAGS", ""), flags))
    os.environ["XLA_FLAGS"] += " --xla_cpu_enable_concurrency_optimized_scheduler=false"
    rows = []
    for devices in options.devices:
        for fsdp in (parts for parts in options.fsdp if devices % parts == 0):
            rows += _compiled(options, devices, fsdp)
    lines, predicted = [], []
    for row in rows:
        where, sizes = (row["fsdp"], row["phase"]), [size for _, size in row["sent"].values()]
        collectives = ", ".join(f"{count} {kind}" for kind, (count, _) in row["sent"].items()) or "none"
        memory = [f"{row[part] / 2**20:,.0f}" for part in ("held", "work")]
        lines.append((row["devices"], *where, collectives, f"{sum(sizes) / 1e6:.2f}", *memory))
        if row["devices"] == max(options.devices):
            row["predicted"] = {
                n: efficiency(row["flops"], row["sent"], n, row["fsdp"], Cluster()) for n in options.predict
            }
            predicted.append((*where, *(f"{100 * value:.1f} %" for value in row["predicted"].values())))
    head = ("devices", "fsdp", "phase", "collectives", "MB sent", "held, MiB", "at work, MiB")
    print(timing.markdown(head, lines))
    print()
    print(timing.markdown(("fsdp", "phase", *(f"{n} GPUs" for n in options.predict)), predicted))
    return {"size": options.size, "learner": options.learner, "assumed": vars(Cluster()), "rows": rows}


def _compiled(options, devices, fsdp):
    from benchmarks import cdl_sizes, fake_data
    from cdl_jax.training.compiled import CompiledSteps
    from cdl_jax.training.experiment import Experiment

    config = cdl_sizes.config(options.size, options.learner, "kd")
    config.update(devices=devices, fsdp_devices=fsdp)
    for key in ("train", "eval"):
        config[key].batch_size *= devices
    each = -(-config.train.batch_size // 100)
    program = Experiment.build(config, fake_data.noise_stream(config.student.image_size, 1, 100, each, 1))
    steps = CompiledSteps(program)
    rows = []
    for index, phase in enumerate(program.method.phases):
        step = steps.train_step(index)
        memory = step.memory_analysis()
        rows.append(
            {
                "devices": devices,
                "fsdp": fsdp,
                "phase": phase.name,
                "sent": collectives(step.as_text()),
                "flops": cdl_sizes.work(config, phase.name).flops / devices,
                "held": memory.argument_size_in_bytes,
                "work": memory.temp_size_in_bytes,
            }
        )
    return rows
