#!/usr/bin/env bash
# One host with one or several GPUs: a single process uses all of them and splits each batch over them.
#   CDL_CUDA=12 bash launch/host.sh --config configs/quickstart.py --workdir runs/quickstart/distilled
# All arguments are passed to cdl_jax.main. Results do not depend on the number of GPUs. train.batch_size is the batch
# size over all GPUs and must be a multiple of their number. CUDA_VISIBLE_DEVICES=0,1 or --config.devices=2 selects
# fewer. After TERM (from a container, a service manager or a cloud that reclaims the host) or Ctrl-C the run saves its
# state and exits with 143 or 130. Rerun the same command to resume.
# CDL_CUDA (12 or 13, as the driver supports) is needed only in the first call, which makes the environment with it.
source "$(dirname "$0")/setup.sh"

# Overlaps the all-reduce of gradients with the backward pass. Flags of the caller come later and take precedence.
export XLA_FLAGS="--xla_gpu_enable_latency_hiding_scheduler=true ${XLA_FLAGS:-}"
# jax allocates this share of each GPU's memory at the start. Lower it to share a GPU with other processes.
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}

exec "$VENV/bin/python" -m cdl_jax.main "$@"
