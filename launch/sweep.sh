#!/usr/bin/env bash
# Trains every config with every seed and every value of a grid, each in its own working directory. Rerun it after an
# interruption: it skips complete runs, resumes interrupted runs and repeats failed runs.
#   bash launch/sweep.sh [-j N] [--dry-run] FOLDER SEEDS CONFIG... [--grid KEY=VALUES]... [-- OVERRIDES...]
#   bash launch/sweep.sh -j 4 runs/sweep 0,1,2 quickstart quickstart:distill=none -- --config.train.epochs=5
#   bash launch/sweep.sh runs/grid 0,1 quickstart --grid optim.learning_rate=1e-3,1e-2 --grid distill.alpha=0.1,0.5
#   python -m cdl_jax.report runs/grid
# FOLDER/<config, its arguments joined by dashes>[/<key>=<value>,...]/seed_<n> are the working directories. Use another
# FOLDER for other overrides: a run of other settings in a working directory is an error. --dry-run prints the commands
# and trains nothing.
#
# Runs with the same teacher train it once, see cdl_jax/sweep.py. The others begin after the run that trains it.
#
# -j N trains N runs at a time. All of them use the same GPUs: for one run per GPU, start the same command once per GPU
# with its CUDA_VISIBLE_DEVICES. Any number of these commands, on any hosts of a shared file system, share the work: a
# lock (flock) on FOLDER/<...>/seed_<n>/turn assigns each run to one of them. launch/sweep.sbatch starts them as a job
# array. FOLDER/missing.txt lists the runs that are not complete. FOLDER/compiled has the compiled programs of all runs.
source "$(dirname "$0")/setup.sh"

usage="usage: bash launch/sweep.sh [-j N] [--dry-run] FOLDER SEED[,SEED...] CONFIG... [--grid KEY=VALUES]... [-- OVERRIDES...]"
jobs=1
if [ "${1-}" = -j ]; then
  jobs=${2-}
  shift $(($# > 1 ? 2 : 1))
fi
if [ $# -lt 3 ] || ! [[ $jobs =~ ^[1-9][0-9]*$ ]]; then
  echo "$usage" >&2
  exit 2
fi
folder=$1
plan=$("$VENV/bin/python" -m cdl_jax.sweep "$@") || exit 2
for word in "$@"; do
  case $word in
    --) break ;;
    --dry-run) echo "$plan" && exit ;;
  esac
done

# One call, or one job array, tries a run only once.
call=${SLURM_ARRAY_JOB_ID:-$(hostname).$$.$(date +%s)}
workdirs=() teachers=() commands=()
while IFS=$'\x1f' read -r workdir teacher words; do
  workdirs+=("$workdir") teachers+=("$teacher") commands+=("$words")
done <<<"$plan"

failed_in_this_call() { # WORKDIR
  [ "$(cut -d' ' -f1 "$1/sweep_failed" 2>/dev/null)" = "$call" ]
}

# A run waits for its teacher as long as this sweep may still complete the teacher's run.
is_planned() { # WORKDIR
  local workdir
  for workdir in "${workdirs[@]}"; do [ "$workdir" != "$1" ] || return 0; done
  return 1
}

# Trains one run after another, except those of other processes. Exits with the code of a run that a requested stop
# ended. A run that another signal ended has failed, such as a run that the system killed for its memory.
work() {
  # A terminal sends INT and HUP to this process too, which must wait until its run has saved its state. `stop` sends
  # TERM after them: the run gets one signal.
  trap 'end_jobs; exit 143' TERM INT HUP USR1
  local waits=1
  while [ $waits -eq 1 ]; do
    waits=0
    train_runs
    [ $waits -eq 0 ] || sleep 1
  done
}

# Trains each run once, and sets `waits` to 1 if another process may be training a teacher for some of them.
train_runs() {
  local i workdir teacher words code
  for i in "${!workdirs[@]}"; do
    workdir=${workdirs[i]} teacher=${teachers[i]}
    [ ! -e "$workdir/sweep_complete" ] || continue
    if [ -n "$teacher" ] && [ ! -e "$teacher/sweep_complete" ]; then
      if is_planned "$teacher" && ! failed_in_this_call "$teacher"; then waits=1; fi
      continue
    fi
    mkdir -p "$workdir"
    exec 9>"$workdir/turn"
    if flock -n 9 && [ ! -e "$workdir/sweep_complete" ] && ! failed_in_this_call "$workdir"; then
      echo "== $workdir"
      code=0
      IFS=$'\x1f' read -r -d '' -a words < <(printf '%s\0' "${commands[i]}")
      "$VENV/bin/python" -m cdl_jax.main "${words[@]}" &
      wait "$!" || code=$?
      case $code in 129 | 130 | 138 | 143) exit "$code" ;; esac # HUP, INT, USR1, TERM: they end the complete sweep
      if [ "$code" -eq 0 ]; then
        rm -f "$workdir/sweep_failed"
        touch "$workdir/sweep_complete"
      else
        echo "$call $code" >"$workdir/sweep_failed"
      fi
    fi
    exec 9>&-
  done
}

# Writes FOLDER/missing.txt and sets `complete`, `failed`, `blocked` (by their teacher) and `others` to numbers of runs.
list_missing() {
  local i workdir teacher lines=
  complete=0 failed=0 blocked=0 others=0
  for i in "${!workdirs[@]}"; do
    workdir=${workdirs[i]} teacher=${teachers[i]}
    if [ -e "$workdir/sweep_complete" ]; then
      complete=$((complete + 1))
    elif failed_in_this_call "$workdir"; then
      failed=$((failed + 1))
      lines+="$workdir failed (exit $(cut -d' ' -f2 "$workdir/sweep_failed"))"$'\n'
    elif [ -n "$teacher" ] && failed_in_this_call "$teacher"; then
      blocked=$((blocked + 1))
      lines+="$workdir not complete: its teacher is that of $teacher, which failed"$'\n'
    else
      others=$((others + 1))
      lines+="$workdir not complete"$'\n'
    fi
  done
  mkdir -p "$folder"
  printf %s "$lines" >"$folder/.missing.$call.$$"
  mv "$folder/.missing.$call.$$" "$folder/missing.txt"
}

workers=()
stop() { # EXIT_CODE
  end_jobs
  list_missing
  echo "stopped; rerun the same command to resume. $folder/missing.txt lists the remaining runs" >&2
  exit "$1"
}
trap 'stop 143' TERM
trap 'stop 130' INT
trap 'stop 129' HUP
trap 'stop 138' USR1
for ((i = 0; i < jobs; i++)); do
  work &
  workers+=($!)
done
for _ in "${workers[@]}"; do
  code=0
  wait -n "${workers[@]}" || code=$?
  [ "$code" -eq 0 ] || stop "$code"
done

list_missing
summary="$complete runs complete, $failed failed, $others assigned to other processes"
[ "$blocked" -eq 0 ] || summary+=", $blocked without their teacher"
echo "$summary"
if [ "$failed" -gt 0 ]; then
  sed 's/^/  /' "$folder/missing.txt" >&2
  exit 1
fi
