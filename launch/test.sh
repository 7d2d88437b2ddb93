#!/usr/bin/env bash
# Runs the tests in the project's own environment, which it makes first where needed. Arguments go to pytest:
#   bash launch/test.sh tests/unit -k layers
source "$(dirname "$0")/setup.sh"
# One process has a whole file, so that what its tests share is made once; the long end-to-end files come first.
exec "$VENV/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q "$@"
