# shellcheck shell=bash
# Sourced by the other scripts here: goes to the repository's root and makes the virtual environment, or leaves it alone
# where it is up to date. Afterwards $VENV names it.
#
#   CDL_VENV    where the environment lies (default: .venv in the repository)
#   CDL_CUDA    12 or 13: also installs jax's CUDA libraries (some gigabytes); empty: CPU only (default: as before)
#   PYTHON      the interpreter to build it with (default: the first of Python 3.13, 3.12, 3.11, 3.14 that works)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${CDL_VENV:-$PWD/.venv}
CDL_CUDA=${CDL_CUDA-$(cat "$VENV/cuda" 2>/dev/null || true)}

# Tried by running, each name at every place on the PATH: a version manager's stand-in may be there and fail, and a
# system's own python3 may lack ensurepip.
find_python() {
  local names=${PYTHON:-python3.13 python3.12 python3.11 python3.14 python3} name candidate
  for name in $names; do
    while read -r candidate; do
      if "$candidate" -c 'import ensurepip, sys, venv; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 15))' \
        </dev/null 2>/dev/null; then
        echo "$candidate"
        return
      fi
    done < <(type -aP "$name")
  done
  echo "cdl_jax: no Python 3.11 to 3.14 with venv found (tried: $names)." \
    "Install one, or name it: PYTHON=/path/to/python3.12 before the command." >&2
  return 1
}

# What the environment was made from. The folder counts, because the project is installed in place.
environment_key() {
  echo "$PWD" "${CDL_CUDA:-cpu}"
  cat requirements.lock requirements.txt pyproject.toml | cksum
}

make_environment() {
  local python start=$SECONDS
  if [ -e "$VENV" ] && [ ! -e "$VENV/pyvenv.cfg" ] && [ -n "$(ls -A "$VENV")" ]; then
    echo "cdl_jax: $VENV is not a virtual environment; set CDL_VENV to an empty or a new folder" >&2
    return 1
  fi
  python=$(find_python)
  echo "making $VENV with $("$python" --version) ..."
  "$python" -m venv --clear "$VENV"
  # setuptools first, and no build isolation: the lock's setuptools builds what has no wheel and the project itself, so
  # nothing is fetched that the lock does not name. Bytecode is made where it is used: compiling all takes half a minute.
  local install=("$VENV/bin/python" -m pip install -q --disable-pip-version-check --no-compile -c requirements.lock)
  "${install[@]}" setuptools
  "${install[@]}" --no-build-isolation -r requirements.lock
  if [ -n "$CDL_CUDA" ]; then
    echo "$CDL_CUDA" >"$VENV/cuda"
    "${install[@]}" "jax[cuda$CDL_CUDA]"
  fi
  "${install[@]}" --no-deps --no-build-isolation -e .
  environment_key >"$VENV/made-from" # last: an environment that was interrupted has no such file and is made anew
  echo "made $VENV in $((SECONDS - start)) s"
}

if ! environment_key | cmp -s - "$VENV/made-from" || ! "$VENV/bin/python" -c '' 2>/dev/null; then
  make_environment
fi
