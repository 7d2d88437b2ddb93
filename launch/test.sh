#!/usr/bin/env bash
# Runs the tests in the project's own environment, which it makes first where needed. Arguments go to pytest:
#   bash launch/test.sh tests/unit -k layers
source "$(dirname "$0")/setup.sh"
exec "$VENV/bin/python" -m pytest -n 2 --dist loadfile -q "$@"
