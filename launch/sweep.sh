#!/usr/bin/env bash
# Trains every config with every seed, each in its own working directory. Rerun it after an interruption: it skips
# complete runs, resumes interrupted runs and repeats failed runs.
#   bash launch/sweep.sh [-j N] FOLDER SEEDS CONFIG... [-- OVERRIDES...]
#   bash launch/sweep.sh -j 4 runs/sweep 0,1,2 configs/quickstart.py configs/quickstart.py:distill=none -- --config.train.epochs=5
# FOLDER/<config, its arguments joined by dashes>/seed_<n> are the working directories. Use another FOLDER for other
# overrides: a run cannot be resumed with other settings.
#
# -j N trains N runs at a time. All of them use the same GPUs: for one run per GPU, start the same command once per GPU
# with its CUDA_VISIBLE_DEVICES. Any number of these commands, on any hosts of a shared file system, share the work: a
# lock (flock) on FOLDER/<...>/seed_<n>/turn assigns each run to one of them. launch/sweep.sbatch starts them as a job
# array. FOLDER/missing.txt lists the runs that are not complete. FOLDER/compiled has the compiled programs of all runs.
source "$(dirname "$0")/setup.sh"

usage="usage: bash launch/sweep.sh [-j N] FOLDER SEED[,SEED...] CONFIG... [-- OVERRIDES...]"
jobs=1
if [ "${1-}" = -j ]; then
  jobs=${2-}
  shift $(($# > 1 ? 2 : 1))
fi
if [ $# -lt 3 ] || ! [[ $jobs =~ ^[1-9][0-9]*$ && $2 =~ ^[0-9]+(,[0-9]+)*$ ]]; then
  echo "$usage" >&2
  exit 2
fi
folder=$1
IFS=, read -ra seeds <<<"$2"
shift 2
configs=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do
  configs+=("$1")
  shift
done
[ $# -eq 0 ] || shift # the remaining arguments are the overrides
for config in "${configs[@]}"; do
  [ -f "${config%%:*}" ] || { echo "cdl_jax: no config file ${config%%:*}. $usage" >&2; exit 2; }
done

# One call, or one job array, tries a run only once.
call=${SLURM_ARRAY_JOB_ID:-$(hostname).$$.$(date +%s)}
of_run=() workdirs=() of_seed=()
for seed in "${seeds[@]}"; do
  for config in "${configs[@]}"; do
    name=$(basename "${config%%:*}" .py)
    [ "${config%%:*}" = "$config" ] || name+=-$(tr ',/' '--' <<<"${config#*:}")
    of_run+=("$config") of_seed+=("$seed") workdirs+=("$folder/$name/seed_$seed")
  done
done

failed_in_this_call() { # WORKDIR
  [ "$(cut -d' ' -f1 "$1/sweep_failed" 2>/dev/null)" = "$call" ]
}

# Trains one run after another, except those of other processes. Exits with the code of a run that a requested stop
# ended. A run that another signal ended has failed, such as a run that the system killed for its memory.
work() { # OVERRIDES...
  local i workdir code
  # A terminal sends INT and HUP to this process too, which must wait until its run has saved its state. `stop` sends
  # TERM after them: the run gets one signal.
  trap 'end_jobs; exit 143' TERM INT HUP USR1
  for i in "${!workdirs[@]}"; do
    workdir=${workdirs[i]}
    [ ! -e "$workdir/sweep_complete" ] || continue
    mkdir -p "$workdir"
    exec 9>"$workdir/turn"
    if flock -n 9 && [ ! -e "$workdir/sweep_complete" ] && ! failed_in_this_call "$workdir"; then
      echo "== $workdir"
      code=0
      "$VENV/bin/python" -m cdl_jax.main --config "${of_run[i]}" --workdir "$workdir" \
        --config.seed="${of_seed[i]}" --config.compilation_cache="$folder/compiled" "$@" &
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

# Writes FOLDER/missing.txt and sets `complete`, `failed` and `others` to numbers of runs.
list_missing() {
  local workdir lines=
  complete=0 failed=0 others=0
  for workdir in "${workdirs[@]}"; do
    if [ -e "$workdir/sweep_complete" ]; then
      complete=$((complete + 1))
    elif failed_in_this_call "$workdir"; then
      failed=$((failed + 1))
      lines+="$workdir failed (exit $(cut -d' ' -f2 "$workdir/sweep_failed"))"$'\n'
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
  work "$@" &
  workers+=($!)
done
for _ in "${workers[@]}"; do
  code=0
  wait -n "${workers[@]}" || code=$?
  [ "$code" -eq 0 ] || stop "$code"
done

list_missing
echo "$complete runs complete, $failed failed, $others assigned to other processes"
if [ "$failed" -gt 0 ]; then
  sed 's/^/  /' "$folder/missing.txt" >&2
  exit 1
fi
