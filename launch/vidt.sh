#!/usr/bin/env bash
# Trains the runs of docs/results/vidt.md, three seeds each, and prints their tables. Rerun it after an interruption:
# complete runs are skipped, interrupted runs resume. One CPU core takes about three hours.
#   bash launch/vidt.sh [FOLDER]   FOLDER: default runs/vidt; the images are drawn into data/glyph_scenes
source "$(dirname "$0")/setup.sh"
folder=${1:-runs/vidt}
scenes=data/glyph_scenes
[ -f "$scenes/annotations/instances_val2017.json" ] ||
  "$VENV/bin/python" -m cdl_jax.data.tools.make_glyph_scenes --out "$scenes"

train() { # WORKDIR ARGUMENTS
  echo "== $1"
  "$VENV/bin/python" -m cdl_jax.main --config "configs/detection_glyph.py:$2" --workdir "$1"
}

rows=(
  alone:epochs=6
  "token_matching:epochs=6,distill=token_matching,teacher=$folder/teacher"
  "vkd:epochs=6,distill=projected_tokens,teacher=$folder/teacher"
)
stream=(
  naive:epochs=3,tasks=3
  past:epochs=3,tasks=3,past=1.0
  beside:epochs=3,tasks=3,distill=projected_tokens,teacher=beside
)
train "$folder/teacher" size=large
for row in "${rows[@]}" "${stream[@]}"; do
  for seed in 0 1 2; do
    train "$folder/${row%%:*}/seed_$seed" "${row#*:},seed=$seed"
  done
done
