#!/usr/bin/env bash
# Runs the tests in the project's own environment, and makes the environment first if needed. Arguments go to pytest:
#   bash launch/test.sh tests/unit -k layers
source "$(dirname "$0")/setup.sh"
# `loadfile` gives all tests of a file to one process, so that fixtures of the file are made once. The longest files, the
# end-to-end tests, start first.
exec "$VENV/bin/python" -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q "$@"
