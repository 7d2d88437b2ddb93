"""Time to start: the import, --help, and from the command to a run's first step.

    python -m benchmarks.run startup [--config configs/quickstart.py] [--rounds 5]

The run writes the loss of its first step at once, and is then stopped. This is done twice: where nothing is
compiled yet, and where an earlier run has left its programs (`config.compilation_cache`). With --clock cpu the orderly
end is counted too.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks import timing
from cdl_jax.errors import UserError

IMPORT, HELP, FIRST, AGAIN = "import cdl_jax", "--help", "first step", "first step, compiled before"


def arguments(parser) -> None:
    """Adds the case's options."""
    parser.add_argument("--config", default="configs/quickstart.py", help="of the run")
    parser.add_argument("--rounds", type=int, default=5)


def measure(options) -> dict:
    """Prints the table; returns its figures.

    Raises:
      UserError: a command fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        begin = lambda cache: first_step(options.config, Path(tempfile.mkdtemp(dir=root)) / "run", cache)  # noqa: E731
        begin(root / "programs")  # fills it
        ways = {
            IMPORT: lambda: command("-c", "import cdl_jax"),
            HELP: lambda: command("-m", "cdl_jax.main", "--help"),
            FIRST: lambda: begin(""),
            AGAIN: lambda: begin(root / "programs"),
        }
        found = {name: timing.summary(values) for name, values in timing.alternate(ways, options.rounds).items()}
    rows = [(name, f"{one['median']:.2f} ({one['q1']:.2f}-{one['q3']:.2f})") for name, one in found.items()]
    print(timing.markdown(("until", "seconds (quartiles)"), rows))
    return {"config": options.config, "seconds": found}


def command(*words: str) -> float:
    """Seconds of a Python command.

    Raises:
      UserError: it failed.
    """
    start = timing.now()
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True)
    if done.returncode:
        raise UserError(f"benchmarks: {' '.join(words)} failed: {(done.stderr.splitlines() or ['without a word'])[-1]}")
    return timing.now() - start


def first_step(config: str, workdir: Path, cache) -> float:
    """Seconds from the command to the first step of a run, which is then ended.

    Raises:
      UserError: the run ends before that.
    """
    words = ["-m", "cdl_jax.main", "--config", config, "--workdir", str(workdir), "--config.log.every_steps=1"]
    words += [f"--config.compilation_cache={cache}"]
    environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    start, lines = timing.now(), workdir / "metrics.jsonl"
    process = subprocess.Popen(
        [sys.executable, *words], env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )
    while process.poll() is None and not (lines.exists() and lines.stat().st_size):
        time.sleep(0.005)
    seconds = timing.now() - start
    process.send_signal(signal.SIGTERM)
    _, err = process.communicate()
    if not lines.exists():
        raise UserError(f"benchmarks: the run failed: {(err.decode().splitlines() or ['without a word'])[-1]}")
    return timing.now() - start if timing.chosen() == "cpu" else seconds  # a process has none before its end
