"""The same training in PyTorch, written for comparison.

It is written from the behavior of the papers and programs, with none of their code. PyTorch is needed here alone, so it
is no dependency of the package: `pip install -e ".[bench]"`.
"""

import importlib.util
import os

from cdl_jax.errors import UserError


def start():
    """The module `torch`, with as many threads as this process has processors.

    Raises:
      UserError: PyTorch is not installed.
    """
    if importlib.util.find_spec("torch") is None:
        raise UserError('benchmarks: PyTorch, the other side of this case, is not installed: pip install -e ".[bench]"')
    import torch

    torch.set_num_threads(len(os.sched_getaffinity(0)))
    return torch
