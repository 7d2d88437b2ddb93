#!/usr/bin/env bash
# Trains the runs of docs/results/glyph100.md (four continual learners, alone and with eight schemes, and reference
# rows) and of docs/results/ablations.md.
#   bash launch/glyph100.sh [FOLDER] [main | ablations | all]     FOLDER: folder of the runs (default: runs/glyph100)
#
# Rerun it after an interruption, or start it several times at once, on several cores or on one GPU: see matrix.sh. All
# rows of the first seed precede those of the second, so that the finished runs form a complete table as early as
# possible.
#
#   CDL_DATA    folder with glyph100.npz and, to pretrain backbones, glyph_pretrain354.npz (default: data); see
#               docs/guides/data.md. Weights glyph_teacher.npz and glyph_student.npz in this folder are used instead of
#               pretraining.
#   CDL_SEEDS   (default: 0 1 2)
#   CDL_TOGETHER=1   all seeds of a row are one program, each with its own class order, and every teacher is trained
#               beside its student. This is faster on a GPU, which steps of such small networks leave idle. On a CPU
#               one process per seed is faster. Such runs need a FOLDER without runs of the other kind. All classes then
#               have 45 training images instead of up to 100, so accuracies are lower than in docs/results/glyph100.md.
source "$(dirname "$0")/setup.sh"
source launch/matrix.sh
folder=${1:-runs/glyph100}
part=${2:-main}
data=${CDL_DATA:-data}
if [[ ! $part =~ ^(main|ablations|all)$ ]] || [ ! -f "$data/glyph100.npz" ]; then
  echo "usage: bash launch/glyph100.sh [FOLDER] [main | ablations | all]; CDL_DATA names the folder of glyph100.npz" >&2
  exit 2
fi

# Overrides for all seeds of a row in one program, and "all" instead of seeds. Empty if each seed is a run.
together=() rounds=("${seeds[@]}")
if [ "${CDL_TOGETHER:-0}" = 1 ]; then
  # Seeds in one program have the same steps, so all classes need equally many images: those of the smallest class.
  together=(--config.seeds="($(IFS=,; echo "${seeds[*]}"),)" --config.data.max_train_per_class=45)
  rounds=(all)
fi

weights_of() { # NETWORK
  if [ -f "$data/glyph_$1.npz" ]; then echo "$data/glyph_$1.npz"; else echo "$folder/pretrain/$1/weights.npz"; fi
}

pretrain() {
  local network
  for network in teacher student; do
    [ -f "$(weights_of "$network")" ] || train "$folder/pretrain/$network" \
      "pretrain_glyph.py:network=glyph_$network" --config.data.path="$data/glyph_pretrain354.npz"
  done
  [ -f "$(weights_of teacher)" ] && [ -f "$(weights_of student)" ]
}

workdir_of() { # FOLDER SEED or all
  if [ "$2" = all ]; then echo "$1"; else echo "$1/seed_$2"; fi
}

# Trains a row of LEARNER with a teacher's run. Without one, or for all seeds together, the run trains its own teacher.
row() { # LEARNER NAME SEED CHOICES [TEACHER'S NAME, "" for none] [OVERRIDES...]
  local teacher_run='' overrides=()
  if [ "$3" = all ]; then
    overrides=("${together[@]}" --config.data.class_order_seed=-1)
  elif [ -n "${5-}" ]; then
    teacher_run=$folder/$1/$5/seed_$3
    if ! finished "$teacher_run"; then return; fi
    teacher_run=,teacher_run=$teacher_run
  fi
  train "$(workdir_of "$folder/$1/$2" "$3")" "glyph100.py:learner=$1,seed=${3/all/0},$4$teacher_run" \
    --config.data.path="$data/glyph100.npz" --config.teacher.weights="$(weights_of teacher)" \
    --config.student.weights="$(weights_of student)" "${overrides[@]}" "${@:6}"
}

main_rows() { # SEED or all
  local learner distill network stream=(--config.data.path="$data/glyph100.npz" "${together[@]}")
  stream+=(--config.data.class_order=shuffle --config.data.class_order_seed="${1/all/-1}")
  for distill in kd none kdp kd_token fitnets dkd prompt_mapping reviewkd vkd; do
    for learner in l2p coda apt dualprompt; do
      case $learner/$distill in
        apt/prompt_mapping) ;; # APT has no prefixes to map
        */kd) row "$learner" kd "$1" distill=kd ;;
        */none) row "$learner" none "$1" distill=none ;;
        *) row "$learner" "$distill" "$1" distill="$distill" kd ;;
      esac
    done
  done
  for network in student teacher; do
    train "$(workdir_of "$folder/$network/nearest_mean" "$1")" \
      "reference.py:row=nearest_mean,data=glyph_file,network=glyph_$network,seed=${1/all/0}" \
      "${stream[@]}" --config.network.weights="$(weights_of "$network")"
  done
  row none probe "$1" distill=none
  row none probe_teacher "$1" distill=none,student=glyph_teacher "" --config.student.weights="$(weights_of teacher)"
  for learner in l2p coda apt dualprompt; do
    row "$learner" joint "$1" distill=none,joint=true
  done
}

ablation_rows() { # SEED or all
  local value tasks
  for value in 2 12; do row l2p kdp_length_$value "$1" distill=kdp kd --config.distill.length=$value; done
  for value in 1 3; do row l2p kdp_layers_$value "$1" distill=kdp kd --config.distill.n_layers=$value; done
  row l2p kdp_zeros "$1" distill=kdp kd --config.distill.token_init=zeros
  for value in 0.1 0.9; do
    row l2p kd_alpha_$value "$1" distill=kd kd --config.distill.alpha=$value
    row l2p kdp_alpha_$value "$1" distill=kdp kd --config.distill.alpha=$value
  done
  for value in 1 4; do row l2p kd_temperature_$value "$1" distill=kd kd --config.distill.temperature=$value; done
  row l2p kd_seen "$1" distill=kd kd --config.distill.classes=seen
  row l2p kd_own_query "$1" distill=kd,teacher_query=teacher
  row apt kd_merged "$1" distill=kd "" --config.learner.teacher_prompts=merged
  for tasks in 5 20; do
    row l2p kd_${tasks}_tasks "$1" distill=kd,tasks=$tasks
    row l2p none_${tasks}_tasks "$1" distill=none,tasks=$tasks
    row l2p kdp_${tasks}_tasks "$1" distill=kdp,tasks=$tasks kd_${tasks}_tasks
  done
}

all_rows() {
  local seed
  pretrain || return 0
  for seed in "${rounds[@]}"; do
    [ "$part" = ablations ] || main_rows "$seed"
    if [ "$part" = ablations ]; then
      row l2p kd "$seed" distill=kd
      row apt kd "$seed" distill=kd
    fi
    [ "$part" = main ] || ablation_rows "$seed"
  done
}

until_done all_rows
