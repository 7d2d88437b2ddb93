"""Time of one of our steps: in each operation, in new memory, and in between.

    python -m benchmarks.run profile [--of cdl] [--phase student] [--learner l2p] [--scheme kd]
    python -m benchmarks.run profile --of dkt

Operations of all blocks of a network are summed, those of the backward pass separately. Some memory is new at each
step: a page fault is a page of 4 KiB that the system hands out, filled with zeros, at its first use.
"""

import re
import tempfile
from collections import Counter
from pathlib import Path

from benchmarks import cdl_sizes, timing

try:
    import resource
except ImportError:  # Windows
    resource = None


def arguments(parser) -> None:
    """Adds the case's options."""
    parser.add_argument("--of", choices=("cdl", "okddip", "dkt"), default="cdl")
    parser.add_argument("--size", choices=cdl_sizes.SIZES, default="tiny")
    parser.add_argument("--learner", choices=cdl_sizes.LEARNERS, default="l2p")
    parser.add_argument("--scheme", choices=cdl_sizes.SCHEMES, default="kd")
    parser.add_argument("--phase", choices=("teacher", "student"), default="teacher")
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--most", type=int, default=16, help="rows of the table")


def measure(options) -> dict:
    """Prints the table; returns its figures."""
    import jax

    if jax.default_backend() == "cpu":
        jax.config.update("jax_default_matmul_precision", "highest")
    learning, index = _learning(options)
    step, batches = learning.compile(index), learning.batches(index, options.steps)
    learning.seconds(index, batches)
    before = resource and resource.getrusage(resource.RUSAGE_SELF)
    start = timing.now()
    learning.seconds(index, batches)
    wall = 1e3 * (timing.now() - start) / options.steps
    after = resource and resource.getrusage(resource.RUSAGE_SELF)
    with tempfile.TemporaryDirectory() as folder:
        with jax.profiler.trace(folder):
            learning.seconds(index, batches)
        (file,) = Path(folder).rglob("*.xplane.pb")
        spent = grouped(durations(file), sources(step.as_text()))
    spent = {name: value / options.steps for name, value in spent.items()}
    figures = {"ms": wall, "in_operations": sum(spent.values()), "temporary_mb": _temporary(step)}
    if resource:
        figures["page_faults"] = (after.ru_minflt - before.ru_minflt) / options.steps
        figures["system_ms"] = 1e3 * (after.ru_stime - before.ru_stime) / options.steps
    print(", ".join(f"{name} {value:.0f}" for name, value in figures.items()) + ", of a step\n")
    most = Counter(spent).most_common(options.most)
    rest = [("all others", figures["in_operations"] - sum(value for _, value in most))]
    rows = [(name, f"{value:.1f}", f"{100 * value / figures['in_operations']:.0f} %") for name, value in most + rest]
    print(timing.markdown(("operation", "ms a step", "share"), rows))
    return {"of": options.of, **figures, "operations": dict(Counter(spent).most_common())}


def _learning(options):
    """(`TrainingState` of what is profiled, index of its phase)."""
    from benchmarks.training_state import TrainingState

    if options.of == "cdl":
        from benchmarks import fake_data

        config = cdl_sizes.config(options.size, options.learner, options.scheme)
        data = fake_data.noise_stream(config.student.image_size, cdl_sizes.TASKS, 10, 8, 1)
        return TrainingState(config, data), int(options.phase == "student")
    if options.of == "okddip":
        from configs import okddip_glyph

        config = okddip_glyph.get_config("method=okddip")
    else:
        from configs import dkt_glyph

        config = dkt_glyph.get_config("replay=0")
    config.augment.train, config.devices = "none", 1
    return TrainingState(config), 0


def _temporary(step):
    memory = step.memory_analysis()
    return memory.temp_size_in_bytes / 1e6 if memory else 0.0


def sources(program: str) -> dict[str, str]:
    """Operation -> the path of what it computes, of a compiled program's text."""
    found = {}
    for name, rest in re.findall(r"^\s*(?:ROOT )?%?([\w.\-]+) = (.*)$", program, re.MULTILINE):
        source = re.search(r'op_name="([^"]*)"', rest)
        found[name] = source.group(1) if source else ""
    return found


def durations(file) -> Counter:
    """Event -> milliseconds, of a profile's file."""
    from jax.profiler import ProfileData

    spent = Counter()
    for plane in ProfileData.from_file(str(file)).planes:
        for line in plane.lines:
            for event in line.events:
                name = event.name
                if plane.name.startswith("/device"):
                    name = dict(event.stats).get("hlo_op", name)
                spent[name] += event.duration_ns / 1e6
    return spent


def grouped(spent, sources) -> Counter:
    """Returns `spent` by what is computed, summed over blocks.

    Events that are no operations are left out.
    """
    found = Counter()
    for name, value in spent.items():
        if name in sources:
            found[group(name, sources[name])] += value
    return found


def group(name: str, source: str) -> str:
    """Returns the row of an operation, such as `backward mlp/fc1/dot_general`.

    The row of an operation without a source is its kind.
    """
    back = "backward " if "transpose(" in source else ""
    path = re.sub(r"(jit|jvp|transpose|vmap)\(|\)", "", source)
    parts = [part for part in path.split("/") if not re.fullmatch(r"step|learn|ViT|block_\d+|\w*layer\d+_\d+|", part)]
    return back + "/".join(parts[-3:]) if parts else re.sub(r"[.\d]+$", "", name)
