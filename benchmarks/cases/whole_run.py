"""A whole small run, from the command to the report.

    python -m benchmarks.run whole_run [--learner l2p] [--scheme kd] [--epochs 8] [--rounds 3]

The run includes start-up, compilation, training, evaluation and files. The quick start's five tasks run against the
same in PyTorch, which starts from the same weights, with the same images and augmentation. Each side is a command of
its own, without anything that an earlier one has compiled; "ours, again" finds the programs that one before it left
(`config.compilation_cache`), as users do from their second run on. The sides shuffle and augment by different random
numbers, so their final accuracies are equal within some points alone, which is checked.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from benchmarks import timing, torch_peers
from cdl_jax.errors import UserError

OURS, AGAIN = "ours", "ours, again"
MAX_DIFFERENCE = 10.0  # points between the final accuracies of two sides


def arguments(parser) -> None:
    """Adds the case's options."""
    parser.add_argument("--learner", choices=("l2p", "dualprompt"), default="l2p")
    parser.add_argument("--scheme", choices=("kd", "kd_token"), default="kd")
    parser.add_argument("--epochs", type=int, default=8, help="of each network in each task")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--manners", nargs="+", choices=("authors", "tuned", "frozen"), default=("authors", "tuned"))


def measure(options) -> dict:
    """Prints the table; returns its figures.

    Raises:
      UserError: a side fails, or ends with another accuracy.
    """
    torch_peers.start()
    overrides = f"learner={options.learner},distill={options.scheme}"
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _start(root, overrides, options.epochs)
        environment = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
        accuracies = {}

        def ours(cache):
            folder = Path(tempfile.mkdtemp(dir=root)) / "run"
            config = [f"--config=configs/quickstart.py:{overrides}", f"--config.train.epochs={options.epochs}"]
            config += [f"--config.compilation_cache={cache}", f"--workdir={folder}"]
            seconds, _ = _run(["-m", "cdl_jax.main", *config], environment)
            results = json.loads((folder / "results.json").read_text())
            return seconds, results["networks"]["student"]["accuracy_matrix"][-1]

        def peer(variant):
            own = {**environment, "TORCHINDUCTOR_CACHE_DIR": tempfile.mkdtemp(dir=root)}
            seconds, output = _run(["-m", "benchmarks.torch_peers.whole", str(root), variant], own)
            return seconds, json.loads(output.splitlines()[-1])

        def way(name, work):
            def timed():
                seconds, accuracy = work()
                accuracies.setdefault(name, []).append(float(np.mean(accuracy)))
                return seconds

            return timed

        cache = root / "programs"
        ours(cache)  # fills it
        ways = {OURS: way(OURS, lambda: ours("")), AGAIN: way(AGAIN, lambda: ours(cache))}
        ways |= {name: way(name, lambda name=name: peer(name)) for name in options.manners}
        found = timing.compare(timing.alternate(ways, options.rounds), OURS)
    means = {name: float(np.mean(values)) for name, values in accuracies.items()}
    for name, mean in means.items():
        if abs(mean - means[OURS]) > MAX_DIFFERENCE:
            raise UserError(f"benchmarks: {name} ends with {mean:.1f} %, ours with {means[OURS]:.1f} %: not the same")
    head = ("run", "seconds (quartiles)", "over ours", "student's final accuracy, %")
    rows = [
        (name, f"{one['median']:.1f} ({one['q1']:.1f}-{one['q3']:.1f})", f"{one['ratio']:.2f}", f"{means[name]:.1f}")
        for name, one in found.items()
    ]
    print(timing.markdown(head, rows))
    return {"learner": options.learner, "scheme": options.scheme, "epochs": options.epochs, "seconds": found,
            "accuracy": accuracies}  # fmt: skip


def _start(root, overrides, epochs):
    """Writes our config and our networks before the first task, for the peers.

    The peers begin with both.
    """
    from flax.traverse_util import flatten_dict

    from benchmarks.training_state import TrainingState
    from configs import quickstart

    config = quickstart.get_config(overrides)
    config.train.epochs = epochs
    np.savez(root / "variables.npz", **flatten_dict(TrainingState(config).variables(), sep="/"))
    (root / "config.json").write_text(json.dumps(config.to_dict()))


def _run(arguments, environment):
    """(Seconds of a Python command, what it printed).

    Raises:
      UserError: it failed.
    """
    start = timing.now()
    done = subprocess.run([sys.executable, *arguments], env=environment, capture_output=True, text=True)
    seconds = timing.now() - start
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["without a word"])[-1]
        raise UserError(f"benchmarks: {' '.join(arguments[:2])} failed: {last}")
    return seconds, done.stdout
