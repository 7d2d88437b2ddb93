#!/usr/bin/env bash
# Trains the runs of docs/results/vidt.md, three seeds each, and prints their tables. Rerun it after an interruption:
# complete runs are skipped, interrupted runs resume. One idle CPU core takes about two hours.
#   bash launch/vidt.sh [FOLDER]   FOLDER: default runs/vidt; the images are drawn into data/glyph_scenes
source "$(dirname "$0")/setup.sh"
folder=${1:-runs/vidt}
scenes=data/glyph_scenes
[ -f "$scenes/annotations/instances_val2017.json" ] ||
  "$VENV/bin/python" -m cdl_jax.data.tools.make_glyph_scenes --out "$scenes"

train() { # WORKDIR ARGUMENTS [OVERRIDES...]
  echo "== $1"
  "$VENV/bin/python" -m cdl_jax.main --config "configs/detection_glyph.py:$2" --workdir "$1" "${@:3}"
}

alone=(alone:epochs=4)
distilled=(
  "token_matching:epochs=4,distill=token_matching,teacher=$folder/teacher"
  "vkd:epochs=4,distill=projected_tokens,teacher=$folder/teacher"
)
stream=(
  naive:epochs=2,tasks=3
  past:epochs=2,tasks=3,past=1.0
  beside:epochs=2,tasks=3,distill=projected_tokens,teacher=beside
)
train "$folder/teacher" size=large --config.train.batch_size=16 --config.augment.group_size=16
for row in "${alone[@]}" "${distilled[@]}" "${stream[@]}"; do
  for seed in 0 1 2; do
    train "$folder/${row%%:*}/seed_$seed" "${row#*:},seed=$seed"
  done
done
runs=("$folder"/{alone,token_matching,vkd}/seed_?)
"$VENV/bin/python" -m cdl_jax.report table "${runs[@]}" --one-row-per-run --label-by-folder
"$VENV/bin/python" -m cdl_jax.report detections "${runs[@]}" --label-by-folder
"$VENV/bin/python" -m cdl_jax.report table "$folder"/{naive,past,beside}/seed_? --label-by-folder
