#!/usr/bin/env bash
# A first experiment on a CPU: a student alone, the same student with distillation, reference rows, and a table.
# Rerun it after an interruption: complete runs are skipped, interrupted runs resume.
source "$(dirname "$0")/setup.sh"
python=$VENV/bin/python
folder=runs/quickstart
"$python" -m cdl_jax.main --config configs/quickstart.py:distill=none --workdir $folder/alone
"$python" -m cdl_jax.main --config configs/quickstart.py --workdir $folder/distilled
"$python" -m cdl_jax.main --config configs/quickstart.py:distill=none,joint=true --workdir $folder/joint
"$python" -m cdl_jax.main --config configs/reference.py:row=probe --workdir $folder/linear_probe
"$python" -m cdl_jax.main --config configs/reference.py:row=nearest_mean --workdir $folder/nearest_mean
"$python" -m cdl_jax.report --label-by-folder $folder/{alone,distilled,joint,linear_probe,nearest_mean}
