#!/usr/bin/env bash
# Trains the runs of docs/results/peers.md, three seeds each, and prints their table. Rerun it after an interruption:
# complete runs are skipped, interrupted runs resume.
#   bash launch/peers.sh [FOLDER]        FOLDER: folder of the runs (default: runs/peers)
source "$(dirname "$0")/setup.sh"
folder=${1:-runs/peers}

train() { # METHOD[,OPTIONS] WORKDIR [OVERRIDES...]
  echo "== $2"
  "$VENV/bin/python" -m cdl_jax.main --config "configs/okddip_glyph.py:method=$1" --workdir "$2" "${@:3}"
}

larger="widths=(16,32,64)"
train supervised "$folder/teacher" "--config.network.$larger"
for seed in 0 1 2; do
  for method in supervised individual cl_ilr one okddip dml okddip,base=network; do
    train "$method,epochs=6,seed=$seed" "$folder/${method/,base=/_}/seed_$seed" --config.train.batch_size=16
  done
  train "kd,epochs=6,seed=$seed" "$folder/kd/seed_$seed" --config.train.batch_size=16 \
    "--config.teacher.$larger" --config.teacher.weights="$folder/teacher"
done
"$VENV/bin/python" -m cdl_jax.report --one-row-per-run \
  "$folder"/{supervised,kd,individual,cl_ilr,one,dml,okddip,okddip_network}/seed_{0,1,2}
