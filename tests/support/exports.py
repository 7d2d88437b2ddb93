"""Runs the loader of an export's README in a process that has jax, and no cdl_jax."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.end_to_end.command import environment

_ABSENT = ("cdl_jax", "flax", "optax", "orbax", "ml_collections", "safetensors")


def python_blocks(folder: Path) -> list[str]:
    """Returns the Python blocks of the README: the loader, and its usage."""
    return re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.DOTALL)


def outputs(folder: Path, scratch: Path, *inputs: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the outputs of an export by name; an output without a name is "output".

    Args:
      folder: of the export.
      scratch: an empty folder, or one without `inputs.npz` and `outputs.npz`.
      *inputs: of the program.
    """
    pytest.importorskip("flatbuffers")
    np.savez(scratch / "inputs.npz", *inputs)
    code = f"""
import sys
sys.modules.update(dict.fromkeys({_ABSENT!r}))
sys.path.insert(0, {str(folder)!r})  # before the installed packages, so that the folder's copy of flatbuffers is used
import flatbuffers
assert flatbuffers.__file__.startswith({str(folder)!r})
{python_blocks(folder)[0]}
import numpy as np
found = load({str(folder)!r})(*np.load("inputs.npz").values())
np.savez("outputs.npz", **(found if isinstance(found, dict) else {{"output": found}}))
"""
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(), cwd=scratch, timeout=200)
    assert done.returncode == 0, done.stderr
    return dict(np.load(scratch / "outputs.npz"))
