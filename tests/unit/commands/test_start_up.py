"""Start-up is fast: the tests count imported modules instead of seconds.

Seconds depend on the machine.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[3]
HEAVY = {
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax",
    "tensorflow",
    "tensorflow_datasets",
    "grain",
    "clu",
    "wandb",
    "mlflow",
    "matplotlib",
}


def python(*arguments) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, timeout=120, cwd=ROOT, env=environment
    )


def imported(*arguments) -> tuple[set[str], subprocess.CompletedProcess]:
    """Returns the modules that a command imports, and the command's result.

    The modules are those that -X importtime lists.
    """
    done = python("-X", "importtime", *arguments)
    return set(re.findall(r"^import time: +\d+ \| +\d+ \| +(\S+)$", done.stderr, flags=re.MULTILINE)), done


def test_importing_the_package_imports_nothing_else():
    done = python(
        "-c", "import sys; before = set(sys.modules); import cdl_jax; print(*sorted(set(sys.modules) - before))"
    )
    assert done.stdout.split() == ["cdl_jax"], done.stderr


def test_help_loads_no_heavy_library():
    modules, done = imported("-m", "cdl_jax.main", "--help")
    assert done.returncode == 0 and "--workdir" in done.stdout
    assert "pathlib" in modules  # the list is really there
    assert {name.split(".")[0] for name in modules} & HEAVY == set()
    assert len([name for name in modules if name.startswith("cdl_jax")]) <= 4
    assert len(modules) < 300


def test_a_wrong_command_is_refused_before_jax_is_loaded():
    modules, done = imported("-m", "cdl_jax.main", "--config", "configs/absent.py", "--workdir", "runs/never")
    assert done.returncode == 2
    assert "cdl_jax: config file configs/absent.py does not exist: " in done.stderr
    assert {name.split(".")[0] for name in modules} & HEAVY == set()


def test_fetch_lists_its_names_without_heavy_libraries():
    modules, done = imported("-m", "cdl_jax.fetch", "--list")
    assert done.returncode == 0 and "imagenet_r" in done.stdout
    assert {name.split(".")[0] for name in modules} & (HEAVY | {"numpy", "huggingface_hub"}) == set()
