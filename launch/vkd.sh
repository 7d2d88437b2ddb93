#!/usr/bin/env bash
# Trains the runs of docs/results/vkd.md, three seeds each, and prints their table. Rerun it after an interruption:
# complete runs are skipped, interrupted runs resume.
#   bash launch/vkd.sh GLYPHS [FOLDER]   GLYPHS: the file glyph100.npz, see docs/guides/data.md; FOLDER: default runs/vkd
source "$(dirname "$0")/setup.sh"
if [ $# -lt 1 ] || [ ! -f "$1" ]; then
  echo "usage: bash launch/vkd.sh GLYPHS [FOLDER]; docs/guides/data.md describes how to draw the file GLYPHS" >&2
  exit 2
fi
glyphs=$1
folder=${2:-runs/vkd}

train() { # WORKDIR PART[,OPTIONS] [OVERRIDES...]
  echo "== $1"
  "$VENV/bin/python" -m cdl_jax.main --config "configs/vkd_glyph.py:part=$2" --workdir "$1" \
    --config.data.path="$glyphs" "${@:3}"
}

rows=(
  "none:feature=0,logit=0" logit:feature=0 linear:projector=linear householder:projector=householder
  matrix_exp:projector=matrix_exp cayley:projector=cayley
  householder_none:norm=none householder_batch:norm=batch householder_whiten:norm=whiten_zca
)
train "$folder/teacher" teacher
runs=()
for row in "${rows[@]}"; do
  for seed in 0 1 2; do
    workdir=$folder/${row%%:*}/seed_$seed
    train "$workdir" "student,${row#*:},seed=$seed" --config.teacher.weights="$folder/teacher"
    runs+=("$workdir")
  done
done
"$VENV/bin/python" -m cdl_jax.report --one-row-per-run "${runs[@]}"
