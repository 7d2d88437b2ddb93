#!/usr/bin/env bash
# One host with one or several GPUs: a single process drives them all and each batch is spread over them.
#   CDL_CUDA=12 bash launch/host.sh --config configs/quickstart.py --workdir runs/quickstart/distilled
# All arguments go to cdl_jax.main. Results do not depend on the number of GPUs; train.batch_size is the whole batch and
# must be a multiple of it. CUDA_VISIBLE_DEVICES=0,1 or --config.devices=2 takes fewer of them.
# TERM (from a container, a service manager or a cloud that takes the host back) and Ctrl-C reach the run, which saves and
# exits with 143 or 130; the same command goes on.
# CDL_CUDA (12 or 13, as the driver allows) is needed only in the first call, which makes the environment with it.
source "$(dirname "$0")/setup.sh"

# Starts the exchange of gradients while earlier layers are still computed. What the caller sets comes later and wins.
export XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true ${XLA_FLAGS:-}"
# jax takes this share of each GPU's memory at the start. Lower it to share a GPU with others.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}

exec "$VENV/bin/python" -m cdl_jax.main "$@"
