"""Settings of all tests. They are made before jax is imported."""

import gc
import os
import signal
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")
# Most of the suite's time is compilation. Tests and the processes that they start share one cache of compiled programs.
# Its key holds the program, the flags, the version of jaxlib and the device, so no test can change another's result.
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parents[1] / ".pytest_cache" / "compiled"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES", "-1")
# Most of the compiler's time is LLVM's effort for speed that no test needs. `--xla_cpu_use_fusion_emitters=false` would
# save half of the rest, but jaxlib 0.10.2 then computes other numbers in tests/parity/test_cdl.py, and crashes.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true")
# Tracing makes many objects that stay. With Python's thresholds a fifth of its time is garbage collection.
gc.set_threshold(100_000, 20, 100)

_QUANTITIES = ("values", "grads", "after_steps")


def pytest_addoption(parser):
    own = Path(__file__).parent / "parity" / "goldens"
    parser.addoption("--goldens", type=Path, default=own, help="folder of fixtures that tests/parity replays")
    parser.addoption("--parity-table", type=Path, help="file to write the largest errors of tests/parity to")


def pytest_configure(config):
    # Bash cannot trap signals that its parent ignores (SIGINT in a background job, SIGHUP under `nohup`).
    for number, handler in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
        if signal.getsignal(number) == signal.SIG_IGN:
            signal.signal(number, handler)
    if config.getoption("--parity-table") and not hasattr(config, "workerinput"):  # workers report to this process
        config.pluginmanager.register(_ParityTable(config.getoption("--parity-table")))


class _ParityTable:
    """Collects the errors of each replay and writes the table at the end."""

    def __init__(self, path):
        self.path, self.rows, self.missing = path, {}, 0

    def pytest_runtest_logreport(self, report):
        found = dict(report.user_properties).get("parity")
        if report.when == "call" and found:
            self.rows.setdefault((found["system"], found["kind"]), []).append(found)
        elif "test_equals_the_authors_program[" not in report.nodeid or "NOTSET" in report.nodeid:
            return  # another test, or pytest's mark of a file without cases
        elif report.failed or report.skipped:
            self.missing += 1

    def pytest_sessionfinish(self, session):
        lines = [
            "# Equal to the authors' code",
            "",
            "Largest error of each kind of fixture, `max|ours - theirs| / max|theirs|` over all its arrays: outputs",
            "and losses, gradients, and parameters after optimizer steps. Theirs were computed in float64, ours in",
            "float32, except for the steps of DKT, of detection and of the GAN: Adam makes a full step of what",
            "rounding leaves of a gradient near zero. Written by `pytest tests/parity --goldens DIR --parity-table",
            "docs/maintainers/parity.md`, where DIR may hold more cases than `tests/parity/goldens`.",
            "",
            "| system | kind | cases | values | gradients | after steps |",
            "|---|---|---|---|---|---|",
        ]
        for (system, kind), found in sorted(self.rows.items()):
            worst = [max((f[q] for f in found if q in f), default=None) for q in _QUANTITIES]
            cells = ["-" if w is None else f"{w:.1e}" for w in worst]
            lines.append(f"| {system} | {kind} | {len(found)} | {' | '.join(cells)} |")
        if self.missing:
            lines += ["", f"{self.missing} more cases failed or have no counterpart here."]
        self.path.write_text("\n".join(lines) + "\n")
