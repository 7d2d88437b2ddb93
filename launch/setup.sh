# shellcheck shell=bash
# Sourced by the other scripts of this folder: changes to the root of the repository, and makes the virtual environment
# unless it is up to date. Sets VENV to its path. Defines `end_jobs`, for handlers of signals.
#
#   CDL_VENV    path of the environment (default: .venv in the repository)
#   CDL_CUDA    12 or 13: also installs the CUDA libraries of jax (some gigabytes). Empty: CPU only. Default: as before
#   PYTHON      the interpreter to build it with (default: the first of Python 3.13, 3.12, 3.11, 3.14 that works)
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
VENV=${CDL_VENV:-$PWD/.venv}
CDL_CUDA=${CDL_CUDA-$(cat "$VENV/cuda" 2>/dev/null || true)}

# Runs each name from every folder of the PATH: the shim of a version manager may exist and fail, and the python3 of a
# system may lack ensurepip.
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

# Prints the sources of the environment. They include the folder, because the project is installed in editable mode.
environment_key() {
  echo "$PWD" "${CDL_CUDA:-cpu}"
  cat requirements.lock requirements.txt pyproject.toml | cksum
}

# Sends TERM to the running jobs of this shell and waits until all of them have ended. Further signals are ignored.
end_jobs() {
  trap '' TERM INT HUP USR1
  kill -TERM $(jobs -pr) 2>/dev/null || true # not `$!`: the job of that number may have ended
  # A signal that is pending ends a `wait` early.
  while [ -n "$(jobs -pr)" ]; do wait || true; done
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
  # setuptools first, and no build isolation: the locked setuptools builds the project and packages without a wheel, so
  # that only locked packages are downloaded. Bytecode is compiled on use: compiling all of it takes half a minute.
  local install=("$VENV/bin/python" -m pip install -q --disable-pip-version-check --no-compile -c requirements.lock)
  "${install[@]}" setuptools
  "${install[@]}" --no-build-isolation -r requirements.lock
  if [ -n "$CDL_CUDA" ]; then
    echo "$CDL_CUDA" >"$VENV/cuda"
    "${install[@]}" "jax[cuda$CDL_CUDA]"
  fi
  "${install[@]}" --no-deps --no-build-isolation -e .
  environment_key >"$VENV/made-from" # last: an incomplete environment has no such file and is made again
  echo "made $VENV in $((SECONDS - start)) s"
}

if ! environment_key | cmp -s - "$VENV/made-from" || ! "$VENV/bin/python" -c '' 2>/dev/null; then
  make_environment
fi
