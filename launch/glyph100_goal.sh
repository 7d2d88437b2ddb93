#!/usr/bin/env bash
# Trains the runs of docs/results/glyph100_goal.md: closed-form heads on the small ViT of Split-Glyph-100 as it was
# pretrained, as the large ViT distilled it, and as an adaptation in the first task left it.
#   bash launch/glyph100_goal.sh [FOLDER]        FOLDER: folder of the runs (default: runs/glyph100_goal)
#
# Rerun it after an interruption, or start it several times at once: see matrix.sh.
#
#   CDL_DATA    folder with glyph100.npz, glyph_pretrain354.npz, glyph_teacher.npz and glyph_student.npz (default:
#               data); docs/guides/data.md and configs/pretrain_glyph.py show how to make them
#   CDL_SEEDS   (default: 0 1 2 3 4)
CDL_SEEDS=${CDL_SEEDS:-0 1 2 3 4}
source "$(dirname "$0")/setup.sh"
source launch/matrix.sh
folder=${1:-runs/glyph100_goal}
data=${CDL_DATA:-data}
for file in glyph100 glyph_pretrain354 glyph_teacher glyph_student; do
  [ -f "$data/$file.npz" ] || { echo "glyph100_goal.sh: CDL_DATA=$data has no $file.npz" >&2; exit 2; }
done

# Distills the student on the characters that are in no task.
backbone() { # MATCH SEED
  train "$folder/backbone/$1/seed_$2" "distill_glyph.py:match=$1,seed=$2" \
    --config.data.path="$data/glyph_pretrain354.npz" --config.teacher.weights="$data/glyph_teacher.npz" \
    --config.student.weights="$data/glyph_student.npz"
}

# Trains LEARNER on the stream in FOLDER/LEARNER/NAME.
row() { # LEARNER NAME SEED WEIGHTS CHOICES [OVERRIDES...]
  train "$folder/$1/$2/seed_$3" "glyph100.py:learner=$1,seed=$3,$5" --config.data.path="$data/glyph100.npz" \
    --config.teacher.weights="$data/glyph_teacher.npz" --config.student.weights="$4" "${@:6}"
}

# Both closed-form heads on one backbone.
heads() { # NAME SEED WEIGHTS [CHOICES]
  row simple_cil "$1" "$2" "$3" "distill=none${4-}"
  row ranpac "$1" "$2" "$3" "distill=none${4-}" --config.learner.adaptation=none
}

# Both heads on the student that `backbone` trained.
trained_heads() { # MATCH SEED
  backbone "$1" "$2"
  ! finished "$folder/backbone/$1/seed_$2" || heads "$1" "$2" "$folder/backbone/$1/seed_$2/weights.npz"
}

all_rows() {
  local seed student=$data/glyph_student.npz
  for seed in "${seeds[@]}"; do trained_heads features "$seed"; done
  for seed in "${seeds[@]}"; do heads none "$seed" "$student"; done
  for seed in "${seeds[@]}"; do
    heads teacher_backbone "$seed" "$data/glyph_teacher.npz" ,student=glyph_teacher
    row ranpac first_task "$seed" "$student" distill=none
    row ranpac first_task_fitnets "$seed" "$student" distill=fitnets
    trained_heads labels "$seed"
  done
}

until_done all_rows
