"""Settings that every test shares; jax is not imported yet when this file is read."""

import os
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("JAX_DEFAULT_MATMUL_PRECISION", "highest")


def pytest_addoption(parser):
    own = Path(__file__).parent / "parity" / "goldens"
    parser.addoption("--goldens", type=Path, default=own, help="folder of fixtures that tests/parity replays")
