#!/usr/bin/env bash
# Measures on this machine's GPU what the documents leave open, in eight minutes: benchmarks/gpu_session.py has the
# sections. Options go there: bash benchmarks/gpu.sh --out gpu_session.jsonl --seconds 480
#
# PYTHON names the Python of an environment with requirements-gpu.txt and, for the other side, torch. Without it the
# first of .gpu_venv, .venv and python3 that has the packages is used, or .gpu_venv is made (6 GB from PyPI).
set -uo pipefail
cd "$(dirname "$0")/.."

# The repository's own packages, without a GPU's: the session itself checks that jax finds one.
has_packages() { "$1" -c "import jax, flax, optax, orbax.checkpoint, ml_collections, clu, grain" 2> /dev/null; }

if [[ -n "${PYTHON:-}" ]]; then
    if ! has_packages "$PYTHON"; then
        echo "benchmarks/gpu.sh: $PYTHON lacks the packages: $PYTHON -m pip install -r requirements-gpu.txt torch" >&2
        exit 2
    fi
else
    for candidate in .gpu_venv/bin/python .venv/bin/python python3; do
        if command -v "$candidate" > /dev/null && has_packages "$candidate"; then
            PYTHON=$candidate
            break
        fi
    done
    if [[ -z "${PYTHON:-}" ]]; then
        if ! { python3 -m venv .gpu_venv && .gpu_venv/bin/pip install -q -r requirements-gpu.txt torch; } >&2; then
            echo "benchmarks/gpu.sh: no Python here has the packages, and pip cannot install them: set PYTHON" >&2
            exit 2
        fi
        PYTHON=.gpu_venv/bin/python
    fi
fi
exec "$PYTHON" -m benchmarks.gpu_session "$@"
