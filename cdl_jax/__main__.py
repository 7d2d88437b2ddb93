"""Runs an experiment: `python -m cdl_jax` is `python -m cdl_jax.main`."""

import sys

from cdl_jax.main import main

sys.exit(main())
