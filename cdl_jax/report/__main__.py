"""Runs `python -m cdl_jax.report`."""

import sys

from cdl_jax.report.page import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
