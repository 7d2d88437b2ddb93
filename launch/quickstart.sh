#!/usr/bin/env bash
# A first experiment on a CPU: the student alone, the same student with distillation, and a report that compares the two.
# Running it again resumes what was interrupted and repeats nothing that is done.
source "$(dirname "$0")/setup.sh"
python=$VENV/bin/python
"$python" -m cdl_jax.main --config configs/quickstart.py:distill=none --workdir runs/quickstart/alone
"$python" -m cdl_jax.main --config configs/quickstart.py --workdir runs/quickstart/distilled
"$python" -m cdl_jax.report runs/quickstart/alone runs/quickstart/distilled
