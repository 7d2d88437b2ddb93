#!/usr/bin/env bash
# The runs behind docs/dkt.md, three seeds each, each with class orders of its own, and their tables. Run it again after
# an interruption: what is complete is left alone, what was interrupted resumes.
#   bash launch/dkt.sh [FOLDER]        FOLDER: where the runs go (default: runs/dkt)
source "$(dirname "$0")/setup.sh"
folder=${1:-runs/dkt}

train() { # NAME CHOICES [OVERRIDES...]; @ stands for the seed
  for seed in 0 1 2; do
    echo "== $1/seed_$seed"
    "$VENV/bin/python" -m cdl_jax.main --config "configs/dkt_glyph.py:${2//@/$seed},seed=$seed" \
      --workdir "$folder/$1/seed_$seed" "${@:3}"
  done
}

# Two learners: alone, together, without a memory; with a rate that does not fall; with the loss over all classes.
train alone topology=none
train together topology=full
train naive topology=none,replay=0
train constant topology=none --config.optim.schedule=constant
train alone_all topology=none,classes=all
train together_all topology=full,classes=all

# How often, and what travels.
train every_5 interval=5
train every_task unit=tasks
train predictions mode=predictions,unit=steps
train weights mode=weights

# Prompts around a frozen ViT, without a memory.
train prompts_alone learner=l2p,topology=none,replay=0
train prompts_together learner=l2p,replay=0

# More learners.
train four_alone learners=4,topology=none
train four_ring learners=4,topology=ring
train four_full learners=4,topology=full
train of_batch topology=full --config.dkt.teacher_bn=batch

# Teachers that learn no more: of all classes, and a continual learner, of other initial weights, after the same task.
one=learners=1,topology=none,order=same
train joint "$one,tasks=1,replay=0,epochs=20"
for seed in 0 1 2; do
  "$VENV/bin/python" -m cdl_jax.main --config "configs/dkt_glyph.py:$one,seed=$seed" --config.seed=1$seed \
    --workdir "$folder/continual/seed_$seed"
done
train one_alone "$one"
train of_joint "teacher=$folder/joint/seed_@,checkpoint=last"
train of_continual "teacher=$folder/continual/seed_@"
