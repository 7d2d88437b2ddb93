#!/usr/bin/env bash
# Every config with every seed, one after another, each in a working directory of its own. Run it again after an
# interruption: what is complete is skipped, what was interrupted resumes, what failed is tried again.
#   bash launch/sweep.sh FOLDER SEEDS CONFIG... [-- OVERRIDES...]
#   bash launch/sweep.sh runs/sweep 0,1,2 configs/quickstart.py configs/quickstart.py:distill=none -- --config.train.epochs=5
# FOLDER/<config, its arguments joined by dashes>/seed_<n> are the working directories. For other overrides take another
# FOLDER: a run is not resumed with other settings. Use GPUs side by side with one call for each, with other seeds:
#   CUDA_VISIBLE_DEVICES=1 bash launch/sweep.sh runs/sweep 3,4,5 ...
source "$(dirname "$0")/setup.sh"

usage="usage: bash launch/sweep.sh FOLDER SEED[,SEED...] CONFIG... [-- OVERRIDES...]"
if [ $# -lt 3 ] || ! [[ $2 =~ ^[0-9]+(,[0-9]+)*$ ]]; then
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
[ $# -eq 0 ] || shift # what is left are the overrides
for config in "${configs[@]}"; do
  [ -f "${config%%:*}" ] || { echo "cdl_jax: no config file ${config%%:*}. $usage" >&2; exit 2; }
done

complete=0 failed=()
for seed in "${seeds[@]}"; do
  for config in "${configs[@]}"; do
    file=${config%%:*}
    name=$(basename "$file" .py)
    [ "$file" = "$config" ] || name+=-$(tr ',/' '--' <<<"${config#*:}")
    workdir=$folder/$name/seed_$seed
    if [ ! -e "$workdir/sweep_complete" ]; then
      echo "== $workdir"
      code=0
      "$VENV/bin/python" -m cdl_jax.main --config "$config" --workdir "$workdir" --config.seed="$seed" "$@" || code=$?
      if [ "$code" -gt 128 ]; then # by a signal: the whole sweep was meant
        echo "stopped; the same command goes on from here" >&2
        exit "$code"
      elif [ "$code" -ne 0 ]; then
        failed+=("$workdir (exit $code)")
        continue
      fi
      touch "$workdir/sweep_complete"
    fi
    complete=$((complete + 1))
  done
done
echo "$complete runs complete, ${#failed[@]} failed"
if [ "${#failed[@]}" -gt 0 ]; then
  printf '  failed: %s\n' "${failed[@]}" >&2
  exit 1
fi
