"""Bytes that a step of CDL sends between devices, and its modelled efficiency.

    python -m benchmarks.run scaling --size b_s [--devices 2 8] [--fsdp 1 4]
    python -m benchmarks.run scaling --size b_s --devices 8 --fsdp 1 8 --card h200

Steps are compiled for devices that one processor simulates; nothing is run. The table has the collectives of the
compiled program, with the bytes of their results, and the memory of a device. The prediction, the efficiency on many
GPUs, is weak scaling: the same images a device, whatever the number of devices.

With `--card`, steps are compiled in bfloat16 for that many GPUs of one host, which are only described (see
`benchmarks/described.py`). The modelled time then has the order of the compiled program, in which collectives run
beside kernels.
"""

import math
import os
import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks import described, kernels, timing

_KINDS = "all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute"
_COLLECTIVE = re.compile(rf"= (\([^)]*\)|\S+) ({_KINDS})\(")
_COLUMNS = ("devices", "fsdp", "phase", "collectives", "MB sent", "held, MiB", "at work, MiB")
_ARRAY = re.compile(r"(pred|[a-z]+(\d+))\[([\d,]*)\]")


@dataclass(frozen=True)
class Cluster:
    """Assumptions of the prediction.

    Attributes:
      flops: operations a second of a device at work.
      host: number of devices of a host.
      links: bytes a second that a device sends (within its host, beyond it).
      latency: seconds that a collective takes at least.
    """

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
    parser.add_argument("--card", choices=kernels.CARDS, help="GPUs that are only described, instead of simulated ones")
    parser.add_argument("--text", type=Path, help="with --card: folder for the compiled programs as text")
    parser.add_argument("--predict", nargs="+", type=int, default=[8, 64, 256, 1024])


def measure(options) -> dict:
    """Prints two tables, or one with `--card`; returns their figures."""
    if options.card:
        return _measure_described(options)
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
        lines.append(_cells(row))
        if row["devices"] == max(options.devices):
            row["predicted"] = {
                n: efficiency(row["flops"], row["sent"], n, row["fsdp"], Cluster()) for n in options.predict
            }
            predicted.append(
                (row["fsdp"], row["phase"], *(f"{100 * value:.1f} %" for value in row["predicted"].values()))
            )
    print(timing.markdown(_COLUMNS, lines))
    print()
    print(timing.markdown(("fsdp", "phase", *(f"{n} GPUs" for n in options.predict)), predicted))
    return {"size": options.size, "learner": options.learner, "assumed": vars(Cluster()), "rows": rows}


def _measure_described(options):
    card = kernels.CARDS[options.card]
    described.start_jax(max(options.devices))
    if options.text:
        options.text.mkdir(parents=True, exist_ok=True)
    rows = []
    for devices in options.devices:
        for fsdp in (parts for parts in options.fsdp if devices % parts == 0):
            config, data = _setting(options, devices, fsdp, bfloat16=True)
            for phase, step in described.compile_steps(config, data, card):
                if options.text:
                    file = options.text / f"{card.name}_{devices}_{fsdp}_{phase}.txt"
                    file.write_text(step.as_text(), encoding="utf-8")
                events = kernels.schedule(step.as_text(), devices)
                row = {"devices": devices, "fsdp": fsdp, "phase": phase, **described.memory(step)}
                rows.append({**row, **waiting(events, card)})
    print(described_table(rows))
    return {"size": options.size, "learner": options.learner, "card": card.name, "latency": card.latency, "rows": rows}


def waiting(events: list, card: kernels.Card) -> dict:
    """Returns the figures of a program's exchanges.

    Args:
      events: result of `kernels.schedule`.
      card: that runs the program.

    Returns:
      `sent`, as `collectives` has it; `kernels` and `collectives`, the sums of their seconds; `waiting`, the seconds in
      which no kernel runs.
    """
    exchanges = [event for event in events if isinstance(event, kernels.Collective)]
    sent = {}
    for exchange in exchanges:
        count, size = sent.get(exchange.kind, (0, 0))
        sent[exchange.kind] = count + 1, size + exchange.bytes
    return {
        "sent": sent,
        "kernels": sum(event.seconds(card) for event in events if isinstance(event, kernels.Kernel)),
        "collectives": sum(exchange.seconds(card) for exchange in exchanges),
        "waiting": kernels.waiting_seconds(events, card),
    }


def described_table(rows: list[dict]) -> str:
    """Formats the figures of steps for described cards as a Markdown table.

    Args:
      rows: of each step, the result of `waiting` with `devices`, `fsdp`, `phase`, `held` and `work`.
    """
    times = ("kernels", "collectives", "waiting")
    lines = []
    for row in rows:
        share = row["kernels"] / (row["kernels"] + row["waiting"])
        modelled = *(f"{1e3 * row[part]:.2f}" for part in times), f"{100 * share:.1f} %"
        lines.append((*_cells(row)[:5], *modelled, *_cells(row)[5:]))
    modelled = *(f"modelled ms, {part}" for part in times), "modelled share of computing"
    return timing.markdown((*_COLUMNS[:5], *modelled, *_COLUMNS[5:]), lines)


def _cells(row):
    listed = ", ".join(f"{count} {kind}" for kind, (count, _) in row["sent"].items()) or "none"
    megabytes = sum(size for _, size in row["sent"].values()) / 1e6
    memory = [f"{row[part] / 2**20:,.0f}" for part in ("held", "work")]
    return row["devices"], row["fsdp"], row["phase"], listed, f"{megabytes:.2f}", *memory


def _setting(options, devices, fsdp, bfloat16=False):
    """Returns the config and the stream of a run on several devices.

    A device has the same number of images, whatever the number of devices.
    """
    from benchmarks import cdl_sizes, fake_data

    config = cdl_sizes.config(options.size, options.learner, "kd", bfloat16)
    config.update(devices=devices, fsdp_devices=fsdp)
    for key in ("train", "eval"):
        config[key].batch_size *= devices
    each = -(-config.train.batch_size // 100)
    return config, fake_data.noise_stream(config.student.image_size, 1, 100, each, 1)


def _compiled(options, devices, fsdp):
    from benchmarks import cdl_sizes
    from cdl_jax.training.compiled import CompiledSteps
    from cdl_jax.training.experiment import Experiment

    config, data = _setting(options, devices, fsdp)
    program = Experiment.build(config, data)
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
