#!/usr/bin/env bash
# Trains the runs of docs/results/emoji.md: continual learners on 400 emoji, alone and with a linear probe on
# EfficientNet-Lite0 with ImageNet weights as the teacher, and reference rows. Rerun it after an interruption, or start
# it several times at once: see matrix.sh.
#   bash launch/emoji.sh [FOLDER]        FOLDER: folder of the runs (default: runs/emoji)
#
#   CDL_DATA    folder with emoji32.npz and efficientnet-lite0-57934424.pth (default: data); docs/guides/data.md has
#               their sources. Weights emoji_student.npz in this folder are used instead of pretraining.
#   CDL_SEEDS   (default: 0 1 2)
source "$(dirname "$0")/setup.sh"
source launch/matrix.sh
folder=${1:-runs/emoji}
data=${CDL_DATA:-data}
lite=$data/efficientnet-lite0-57934424.pth
if [ ! -f "$data/emoji32.npz" ] || [ ! -f "$lite" ]; then
  echo "usage: bash launch/emoji.sh [FOLDER]; CDL_DATA names the folder of emoji32.npz and ${lite##*/}" >&2
  exit 2
fi
student=$data/emoji_student.npz
[ -f "$student" ] || student=$folder/pretrain/student/weights.npz

reference() { # FOLDER ROW NETWORK WEIGHTS SEED
  train "$folder/$1/$2/seed_$5" "reference.py:row=$2,data=emoji_file,network=$3,seed=$5" \
    --config.data.path="$data/emoji32.npz" --config.network.weights="$4"
}

row() { # LEARNER NAME SEED CHOICES
  train "$folder/$1/$2/seed_$3" "emoji.py:learner=$1,seed=$3,$4" --config.data.path="$data/emoji32.npz" \
    --config.student.weights="$student"
}

all_rows() {
  local seed learner distill teacher
  [ -f "$student" ] || train "$folder/pretrain/student" pretrain_glyph.py:network=glyph_student,data=emoji_file \
    --config.data.path="$data/emoji32.npz"
  [ -f "$student" ] || return 0
  for seed in "${seeds[@]}"; do
    teacher=$folder/teacher/probe/seed_$seed
    reference teacher probe efficientnet_lite0 "$lite" "$seed"
    reference teacher nearest_mean efficientnet_lite0 "$lite" "$seed"
    reference student nearest_mean glyph_student "$student" "$seed"
    row none probe "$seed" distill=none
    for learner in l2p coda apt dualprompt; do
      row "$learner" none "$seed" distill=none
      row "$learner" joint "$seed" distill=none,joint=true
    done
    finished "$teacher" || continue
    for distill in kd dkd kd_token kdp; do
      for learner in l2p coda apt dualprompt; do
        row "$learner" "$distill" "$seed" "distill=$distill,teacher_run=$teacher"
      done
    done
  done
}

until_done all_rows
