#!/usr/bin/env bash
# Trains the runs of docs/results/dkt.md, three seeds each, each seed with its own class orders. Rerun it after an
# interruption: complete runs are skipped, interrupted runs resume.
#   bash launch/dkt.sh [FOLDER]        FOLDER: folder of the runs (default: runs/dkt)
source "$(dirname "$0")/setup.sh"
folder=${1:-runs/dkt}

train() { # NAME CHOICES [OVERRIDES...]; @ is replaced by the seed
  for seed in 0 1 2; do
    echo "== $1/seed_$seed"
    "$VENV/bin/python" -m cdl_jax.main --config "configs/dkt_glyph.py:${2//@/$seed},seed=$seed" \
      --workdir "$folder/$1/seed_$seed" "${@:3}"
  done
}

# Two learners: alone, together, without a memory, with a constant rate; intervals and contents of the exchange.
train alone topology=none
train together topology=full
train naive topology=none,replay=0
train constant topology=none --config.optim.schedule=constant
train every_5 interval=5
train every_task unit=tasks
train predictions mode=predictions,unit=steps
train weights mode=weights

# The loss over all classes, as in the authors' code. In ignorant_all a learner receives only the initial other learner.
train alone_all topology=none,classes=all
train together_all classes=all
train ignorant_all classes=all,interval=1000
train every_task_all classes=all,unit=tasks

# Prompts around a frozen ViT, without a memory.
train prompts_alone learner=l2p,topology=none,replay=0
train prompts_together learner=l2p,replay=0
train prompts_weights learner=l2p,replay=0,mode=weights

# A teacher that was trained on all classes and is frozen.
one=learners=1,topology=none,order=same,classes=all
train joint "$one,tasks=1,replay=0,epochs=20"
train one_alone_all "$one"
train of_joint_all "teacher=$folder/joint/seed_@,checkpoint=last,classes=all"

# Four and eight learners: in a ring, fully connected, and with averaged weights.
train four_alone_all learners=4,topology=none,classes=all
train four_ring_all learners=4,topology=ring,classes=all
train four_ring_task_all learners=4,topology=ring,classes=all,unit=tasks
train four_full_task_all learners=4,classes=all,unit=tasks
train eight_alone_all learners=8,topology=none,classes=all
train eight_ring_task_all learners=8,topology=ring,classes=all,unit=tasks
train four_alone learners=4,topology=none
train four_weights learners=4,mode=weights

# A continual learner with other initial weights, whose state after the same task is the teacher.
for seed in 0 1 2; do
  "$VENV/bin/python" -m cdl_jax.main --config "configs/dkt_glyph.py:$one,seed=$seed" --config.seed=1$seed \
    --workdir "$folder/continual/seed_$seed"
done
train of_continual_all "teacher=$folder/continual/seed_@,classes=all"
