#!/usr/bin/env bash
# Trains the GANs of docs/results/generation.md on characters, three seeds each, and prints their table. Rerun it after
# an interruption: complete runs are skipped, interrupted runs resume.
#   bash launch/gan.sh FILES [FOLDER]   FILES: folder with glyph100.npz (docs/guides/data.md), glyph_vit_teacher.npz and
#                                       glyph_vit_student.npz (configs/pretrain_glyph.py); FOLDER: default runs/gan
#   ROWS="da literal" SEEDS="0"         select rows and seeds; further rows: literal replaced_none replaced_layer
#   SWEEP=1                             trains the weights 0.1, 1, 10 of the teacher's terms on seed 9, which no table of
#                                       three seeds has, for 900 iterations
#   WEIGHT=0.1 KD_WEIGHT=0.1            the weights that the sweep has chosen, of VkD's term and of KD-DLGAN's
source "$(dirname "$0")/setup.sh"
if [ $# -lt 1 ] || [ ! -f "$1/glyph100.npz" ]; then
  echo "usage: bash launch/gan.sh FILES [FOLDER]; FILES has glyph100.npz and the weights of both ViTs" >&2
  exit 2
fi
files=$1
folder=${2:-runs/gan}
runs=()

train() { # NAME ROW[,OPTIONS] SEED
  local teacher=(--config.teacher.weights="$files/glyph_vit_teacher.npz")
  case $2 in row=da*|*control=random*) teacher=() ;; esac
  echo "== $1 seed $3"
  "$VENV/bin/python" -m cdl_jax.main --config "configs/gan_glyph.py:$2,seed=$3" --workdir "$folder/$1/seed_$3" \
    --config.data.path="$files/glyph100.npz" --config.measuring.weights="$files/glyph_vit_student.npz" \
    "${teacher[@]}"
  runs+=("$folder/$1/seed_$3")
}

if [ -n "${SWEEP:-}" ]; then
  train sweep/da row=da,iterations=900 9
  for weight in 0.1 1.0 10.0; do
    train "sweep/replaced_$weight" "row=replaced,weight=$weight,iterations=900" 9
    train "sweep/aggregated_$weight" "row=aggregated,kd_weight=$weight,iterations=900" 9
  done
  "$VENV/bin/python" -m cdl_jax.report --one-row-per-run --label-by-folder "${runs[@]}"
  exit
fi

weight=${WEIGHT:-0.1}
kd_weight=${KD_WEIGHT:-0.1}
declare -A options=(
  [da]=row=da
  [aggregated]=row=aggregated,kd_weight=$kd_weight
  [literal]=row=literal,weight=$weight,kd_weight=$kd_weight
  [replaced_none]=row=replaced,norm=none,weight=$weight
  [replaced_layer]=row=replaced,norm=layer,weight=$weight
  [replaced_each]=row=replaced,weight=$weight
  [replaced_data]=row=replaced,scope=data,weight=$weight
  [shuffled]=row=replaced,control=shuffled,weight=$weight
  [random]=row=replaced,control=random,weight=$weight
)
names="da replaced_each shuffled random replaced_data aggregated"
for name in ${ROWS:-$names}; do
  for seed in ${SEEDS:-0 1 2}; do
    train "$name" "${options[$name]}" "$seed"
  done
done
"$VENV/bin/python" -m cdl_jax.report generation "${runs[@]}"
