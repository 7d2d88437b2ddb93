#!/usr/bin/env bash
# Trains the matrix of learners by schemes on Split-Glyph-100 and on emoji. Each learner has its own learning rate: the
# best of a search on a seed that is not reported. Closed-form learners have no rate and no scheme.
#   bash launch/learners.sh [FOLDER] [glyph100 | emoji | all]        FOLDER: folder of the runs (default: runs/learners)
#
# Rerun it after an interruption, or start it several times at once: see matrix.sh. At the end it writes
# FOLDER/<stream>.md and three plots beside it; python -m cdl_jax.report grid makes them of any of the runs.
#
#   CDL_DATA         folder with glyph100.npz, glyph_teacher.npz and glyph_student.npz; for emoji with emoji32.npz,
#                    emoji_teacher.npz and emoji_student.npz (default: data), see configs/pretrain_glyph.py
#   CDL_SEEDS        of the reported runs and of their class orders (default: 0 1 2)
#   CDL_SEARCH_SEED  (default: 100)
#   CDL_RATES        learning rates of the search (default: 1e-3 5e-3 2e-2)
#   CDL_LEARNERS     learners with training by gradients (default: all of this package; "" for none)
#   CDL_CLOSED       closed-form learners (default: simple_cil ranpac; "" for none)
#   CDL_SCHEMES      schemes beside `none` and `kd` (default: all of this package; "" for none)
#   CDL_OVERRIDES    words for every run, such as --config.train.epochs=1
source "$(dirname "$0")/setup.sh"
source launch/matrix.sh
folder=${1:-runs/learners}
part=${2:-all}
data=${CDL_DATA:-data}
search_seed=${CDL_SEARCH_SEED:-100}
read -ra rates <<<"${CDL_RATES:-1e-3 5e-3 2e-2}"
read -ra learners <<<"${CDL_LEARNERS-l2p dualprompt coda apt os_prompt lora fine_tuning lae slca aper ease none}"
read -ra closed <<<"${CDL_CLOSED-simple_cil ranpac}"
every_scheme="fitnets dkd reviewkd vkd kd_token kdp prompt_mapping relational similarity_preserving pkt"
every_scheme+=" attention_transfer dist logit_standardization mse_logits prototypes past"
read -ra schemes <<<"${CDL_SCHEMES-$every_scheme}"
read -ra overrides <<<"${CDL_OVERRIDES-}"
case $part in
  all) streams=(glyph100 emoji) ;;
  glyph100 | emoji) streams=("$part") ;;
  *) echo "usage: bash launch/learners.sh [FOLDER] [glyph100 | emoji | all]" >&2 && exit 2 ;;
esac
declare -A images=([glyph100]=glyph100 [emoji]=emoji32) networks=([glyph100]=glyph [emoji]=emoji)
for stream in "${streams[@]}"; do
  for file in "${images[$stream]}" "${networks[$stream]}_teacher" "${networks[$stream]}_student"; do
    [ -f "$data/$file.npz" ] || { echo "learners.sh: CDL_DATA=$data has no $file.npz" >&2; exit 2; }
  done
done

# Trains a run of LEARNER on STREAM.
learn() { # STREAM WORKDIR LEARNER SEED CHOICES [OVERRIDES...]
  train "$2" "$1.py:learner=$3,seed=$4,$5" --config.data.path="$data/${images[$1]}.npz" \
    --config.teacher.weights="$data/${networks[$1]}_teacher.npz" \
    --config.student.weights="$data/${networks[$1]}_student.npz" "${overrides[@]}" "${@:6}"
}

declare -A best_rates=() # <stream>/<learner> -> learning rate

# Sets `rate` to the best rate of a learner; fails while runs of the search are missing.
find_rate() { # STREAM LEARNER
  local value run searched=$folder/search/$1/$2 runs=()
  rate=${best_rates[$1/$2]-}
  [ -z "$rate" ] || return 0
  [[ " ${failed[*]-} " != *" $searched "* ]] || return 1
  for value in "${rates[@]}"; do
    runs+=("$searched/$value/seed_$search_seed")
    learn "$1" "${runs[-1]}" "$2" "$search_seed" distill=none --config.optim.learning_rate="$value"
  done
  for run in "${runs[@]}"; do
    [[ " ${failed[*]-} " != *" $run "* ]] && finished "$run" || return 1
  done
  rate=${rates[0]}
  if [ "${#rates[@]}" -gt 1 ]; then
    rate=$("$VENV/bin/python" -m cdl_jax.report best optim.learning_rate "${runs[@]}") ||
      { failed+=("$searched"); return 1; }
  fi
  best_rates[$1/$2]=$rate
}

# Whether a learner can have a scheme: closed-form heads have no second head and no past, only prefixes are mapped.
fits() { # LEARNER SCHEME
  case $1/$2 in
    aper/kd_token | aper/kdp | aper/past | ease/kd_token | ease/kdp | ease/past) return 1 ;;
    slca/kd_token | slca/kdp | slca/past) return 1 ;;
    l2p/prompt_mapping | dualprompt/prompt_mapping | coda/prompt_mapping) return 0 ;;
    */prompt_mapping) return 1 ;;
  esac
}

seed_rows() { # STREAM SEED
  local learner scheme rate teacher
  for learner in "${closed[@]}"; do
    # Without an adaptation in the first task, which is trained by gradients.
    local frozen=()
    [ "$learner" = simple_cil ] || frozen=(--config.learner.adaptation=none)
    learn "$1" "$folder/$1/$learner/none/seed_$2" "$learner" "$2" distill=none "${frozen[@]}"
  done
  for learner in "${learners[@]}"; do
    find_rate "$1" "$learner" || continue
    teacher=$folder/$1/$learner/kd/seed_$2
    learn "$1" "$folder/$1/$learner/none/seed_$2" "$learner" "$2" distill=none --config.optim.learning_rate="$rate"
    learn "$1" "$teacher" "$learner" "$2" distill=kd --config.optim.learning_rate="$rate"
    grep -qs '"status": "finished"' "$teacher/results.json" || continue
    for scheme in "${schemes[@]}"; do
      ! fits "$learner" "$scheme" || learn "$1" "$folder/$1/$learner/$scheme/seed_$2" "$learner" "$2" \
        "distill=$scheme,teacher_run=$teacher" --config.optim.learning_rate="$rate"
    done
  done
}

all_rows() {
  local seed stream
  for seed in "${seeds[@]}"; do
    for stream in "${streams[@]}"; do seed_rows "$stream" "$seed"; done
  done
}

until_done all_rows
for stream in "${streams[@]}"; do
  plots=(--plot-operations "$folder/${stream}_operations.svg")
  [ "${#learners[@]}" -eq 0 ] || plots+=(--plot "$folder/$stream.svg" --plot-strength "$folder/${stream}_strength.svg")
  "$VENV/bin/python" -m cdl_jax.report grid "$folder/$stream" --out "$folder/$stream.md" "${plots[@]}"
done
