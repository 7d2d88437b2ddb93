# shellcheck shell=bash
# Sourced after setup.sh by scripts that train the rows of a table. When such a script is rerun, it skips complete runs
# and resumes interrupted ones. When it is started several times, its processes share the work: each skips the runs that
# another process is training. After a signal the current run saves its state.
#
#   CDL_SEEDS   (default: 0 1 2)
#   CDL_WAIT    seconds to wait if other processes are training all remaining runs (default: 30)
read -ra seeds <<<"${CDL_SEEDS:-0 1 2}"

failed=()
stop() { # EXIT_CODE
  end_jobs
  echo stopped >&2
  exit "$1"
}
trap 'stop 143' TERM
trap 'stop 130' INT
trap 'stop 129' HUP

finished() { # WORKDIR of one seed or of all seeds
  local seed
  if [ ! -f "$1/seed_${seeds[0]}/results.json" ]; then
    grep -qs '"status": "finished"' "$1/results.json"
    return
  fi
  for seed in "${seeds[@]}"; do grep -qs '"status": "finished"' "$1/seed_$seed/results.json" || return 1; done
}

# Trains in WORKDIR, unless the run is finished, belongs to another process, or has failed. The words of a finished run
# are compared without paths; if they differ, cdl_jax.main compares the configs and accepts or refuses the run.
train() { # WORKDIR CONFIG [OVERRIDES...]
  local code=0 words
  [[ " ${failed[*]-} " != *" $1 "* ]] || return 0
  words=$(printf '%s\n' "${@:2}" | sed -E 's#=[^=,]*/[^,]*#=PATH#g')
  if is_done "$1" "$words"; then return; fi
  mkdir -p "$1"
  exec 9>"$1/turn"
  if ! flock -n 9; then
    waiting=$((waiting + 1))
  elif ! is_done "$1" "$words"; then
    echo "== $1 ($(date +%H:%M:%S))"
    "$VENV/bin/python" -m cdl_jax.main --config "configs/$2" --workdir "$1" --config.log.report=false \
      --config.log.to='()' "${@:3}" &
    wait "$!" || code=$?
    case $code in 129 | 130 | 138 | 143) # HUP, INT, USR1, TERM: a requested stop; other signals are a failure
      echo "$1 was ended by signal $((code - 128))" >&2
      exit "$code" ;;
    esac
    if [ "$code" -ne 0 ]; then
      failed+=("$1")
    else
      trained=$((trained + 1))
      echo "$words" >"$1/words"
    fi
  fi
  exec 9>&-
}

is_done() { # WORKDIR WORDS
  finished "$1" && { [ ! -f "$1/words" ] || [ "$(<"$1/words")" = "$2" ]; }
}

# Calls COMMAND, which trains all rows, until no run is left: each round returns to the runs that waited for a teacher
# or for another process. Exits with 1 if a run failed.
until_done() { # COMMAND
  while :; do
    trained=0 waiting=0
    "$@"
    if [ "$trained" = 0 ]; then
      [ "$waiting" -gt 0 ] || break
      sleep "${CDL_WAIT:-30}" &
      wait "$!" || true
    fi
  done
  if [ "${#failed[@]}" -gt 0 ]; then
    printf 'failed: %s\n' "${failed[@]}" >&2
    exit 1
  fi
}
