"""DKT on Split CIFAR-100, 10 tasks: two slim ResNet-18 teach each other.

Each network has its own class order.

    python -m cdl_jax.main --config configs/cifar100_dkt.py --fetch
    python -m cdl_jax.main --config configs/cifar100_dkt.py:baseline=lwf

Paper: Distributed Knowledge Transfer; docs/methods/dkt.md has the source and the settings. This is the authors' third
experiment; the other two need a teacher that is trained first, see configs/dkt.py.
Published: no accuracy of these experiments (docs/methods/dkt.md).
Length: 800 epochs for each of 10 tasks. Time on a GPU: not measured.

baseline   empty; or instead of the experiment naive, replay, lwf, eeil, joint
network    slim_resnet18, resnet32_padded, resnet18_32px, resnet34_32px; empty: the experiment's
epochs     of a task; 0: the authors'
reference  true: what the authors' code does, defects included
"""

import runpy
from pathlib import Path

from cdl_jax import config as base


def get_config(text=""):
    choices = base.arguments(text, baseline="", network="", epochs=0, seed=0, reference=False)
    experiments = runpy.run_path(str(Path(__file__).with_name("dkt.py")))
    return experiments["get_config"](",".join(f"{key}={value}" for key, value in choices.items()))
