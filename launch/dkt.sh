#!/usr/bin/env bash
# The runs behind docs/results/dkt.md, three seeds each, each with class orders of its own, and their tables. Run it again after
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

# Two learners: alone, together, without a memory, with a rate that does not fall; how often, and what travels.
train alone topology=none
train together topology=full
train naive topology=none,replay=0
train constant topology=none --config.optim.schedule=constant
train every_5 interval=5
train every_task unit=tasks
train predictions mode=predictions,unit=steps
train weights mode=weights

# The loss over all classes, as the authors have it. The ignorant hear what the other was at the very beginning.
train alone_all topology=none,classes=all
train together_all classes=all
train ignorant_all classes=all,interval=1000
train every_task_all classes=all,unit=tasks

# Prompts around a frozen ViT, without a memory.
train prompts_alone learner=l2p,topology=none,replay=0
train prompts_together learner=l2p,replay=0
train prompts_weights learner=l2p,replay=0,mode=weights

# A teacher that learns no more, as it knows all classes.
one=learners=1,topology=none,order=same,classes=all
train joint "$one,tasks=1,replay=0,epochs=20"
train one_alone_all "$one"
train of_joint_all "teacher=$folder/joint/seed_@,checkpoint=last,classes=all"

# Four and eight learners: in a ring, each hearing all others, and taking over a share of all others' weights.
train four_alone_all learners=4,topology=none,classes=all
train four_ring_all learners=4,topology=ring,classes=all
train four_ring_task_all learners=4,topology=ring,classes=all,unit=tasks
train four_full_task_all learners=4,classes=all,unit=tasks
train eight_alone_all learners=8,topology=none,classes=all
train eight_ring_task_all learners=8,topology=ring,classes=all,unit=tasks
train four_alone learners=4,topology=none
train four_weights learners=4,mode=weights

# A continual learner, of other initial weights, that teaches as it was after the same task.
for seed in 0 1 2; do
  "$VENV/bin/python" -m cdl_jax.main --config "configs/dkt_glyph.py:$one,seed=$seed" --config.seed=1$seed \
    --workdir "$folder/continual/seed_$seed"
done
train of_continual_all "teacher=$folder/continual/seed_@,classes=all"
